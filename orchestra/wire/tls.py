"""TLS under a line, as Twisted has it, but for one thing: what a cut line leaves is gone at once.

Twisted makes a failure of OpenSSL's complaint. Its traceback has the frame that holds the failure, and with it 80 kB of
connection, until the garbage collector looks at things of that age; ours is told to do that seldom.
"""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from orchestra.wire.prompt import send_now


class Transport(BufferingTLSTransport):
    """The TLS of one connection."""

    def flush(self) -> None:
        """Send at once what was written in this turn."""
        self._aggregator.flush()
        send_now(self.transport)

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        super()._tlsShutdownFinished(reason)  # type: ignore[no-untyped-call]  # Twisted's own
        if reason is not None and reason.value is not None:
            reason.tb = reason.value.__traceback__ = None


def over_tls(credentials: Any, is_client: bool, factory: Any, clock: Any = None) -> TLSMemoryBIOFactory:
    """What builds the protocols of ``factory`` on top of TLS."""
    made = TLSMemoryBIOFactory(credentials, is_client, factory, clock)
    made.protocol = Transport
    return made


@implementer(IStreamClientEndpoint)
class Dial:
    """The way to a server: what ``endpoint`` reaches, and TLS with these credentials."""

    def __init__(self, credentials: Any, endpoint: Any) -> None:
        self._credentials = credentials
        self._endpoint = endpoint

    def connect(self, factory: Any) -> "Deferred[Any]":
        """The protocol of ``factory``, once TCP is there."""
        dialled: Deferred[Any] = self._endpoint.connect(over_tls(self._credentials, True, factory))
        return dialled.addCallback(lambda transport: transport.wrappedProtocol)
