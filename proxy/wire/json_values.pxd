# cython: language_level=3
cdef enum:
    # What is wrong with a value; JSON_FAULTS in json_values.pyx has the words.
    JSON_FINE = 0
    JSON_CUT = 1
    JSON_SYNTAX = 2
    JSON_NOT_UTF8 = 3
    JSON_MARK = 4
    JSON_CONTROL = 5
    JSON_ESCAPE = 6
    JSON_SURROGATE = 7
    JSON_NUMBER = 8
    JSON_DEEP = 9
    JSON_DUPLICATE = 10
    JSON_DANGEROUS = 11
    JSON_CROWDED = 12


cdef int judge_json(const char* data, Py_ssize_t size, Py_ssize_t* fault) except -100
