"""Which certificates are taken from nodes, and which are shown to them."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from proxy.config import TLS
from proxy.errors import StartError
from proxy.upstream.tls import ClientTLS
from proxy.upstream.topology import ClusterTopology, Member, TopologyError
from tests.fakenode import FakeCluster, FakeConnection
from tests.upstream.stand import cluster_config, secret

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("names", "hostname", "server_name", "fine"),
    [
        (["127.0.0.1"], None, None, True),
        (["redis.internal"], None, None, False),
        (["redis.internal"], None, "redis.internal", True),
        (["redis.internal"], "redis.internal", None, True),
        (["redis.internal"], "other.internal", None, False),
    ],
)
async def test_control_connections_check_the_name_too(
    tmp_path: Path, names: list[str], hostname: str | None, server_name: str | None, fine: bool
) -> None:
    """The topology, and the password, go only to nodes whose certificate has the right name."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    cluster = FakeCluster(1)
    (node,) = cluster.nodes
    server = await asyncio.get_running_loop().create_server(
        lambda: FakeConnection(node), "127.0.0.1", 0, ssl=context
    )
    node.port = server.sockets[0].getsockname()[1]
    config = cluster_config(
        [node], tls=TLS(tmp_path / "ca.pem", server_name, None, None), password=secret("pw"),
        timeout=2.0,
    )  # fmt: skip
    topology = ClusterTopology(config, ClientTLS(config))
    known = [Member("127.0.0.1", node.port, node.identity, hostname)]
    if fine:
        assert len((await topology.fetch(known)).members) == 1
    else:
        with pytest.raises(TopologyError):
            await topology.fetch(known)
        assert node.commands == []
    server.close()
    await cluster.stop()


async def test_certificates_are_renewed(tmp_path: Path) -> None:
    """Files are taken for the next connection; what is broken changes nothing."""
    ca, cert = tmp_path / "ca.pem", tmp_path / "cert.pem"
    authorities = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.verify_mode = ssl.CERT_REQUIRED
    for authority in authorities:
        authority.configure_trust(context)
    authorities[1].issue_cert("127.0.0.1").configure_cert(context)
    shown: list[Any] = []

    class Noting(FakeConnection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            shown.append(transport.get_extra_info("peercert")["serialNumber"])
            super().connection_made(transport)

    def issue(number: int) -> None:
        own = authorities[number].issue_cert("proxy")
        cert.write_bytes(b"".join(
            part.bytes() for part in (own.private_key_pem, *own.cert_chain_pems)
        ))  # fmt: skip
        authorities[number].cert_pem.write_to_path(str(ca))

    issue(0)
    cluster = FakeCluster(1)
    (node,) = cluster.nodes
    server = await asyncio.get_running_loop().create_server(
        lambda: Noting(node), "127.0.0.1", 0, ssl=context
    )
    node.port = server.sockets[0].getsockname()[1]
    config = cluster_config([node], tls=TLS(ca, None, cert, cert), timeout=2.0)
    tls = ClientTLS(config)
    topology = ClusterTopology(config, tls)
    known = [Member("127.0.0.1", node.port, node.identity)]
    with pytest.raises(TopologyError):
        await topology.fetch(known)
    issue(1)
    tls.check()
    tls.renew()
    assert len((await topology.fetch(known)).members) == 1
    cert.write_text("nothing")
    with pytest.raises(StartError, match="certificates of cluster cache cannot be taken"):
        tls.check()
    assert len((await topology.fetch(known)).members) == 1
    issue(1)
    tls.renew()
    assert len((await topology.fetch(known)).members) == 1
    assert len(set(shown)) == 2
    server.close()
    await cluster.stop()
