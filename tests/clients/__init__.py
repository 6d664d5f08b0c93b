"""Sixty everyday operations, written for each client library as its users write them."""
