"""The other side of tests of TLS: Python's ssl, as a client or a server. Says on its standard output what it sees.

Called with what it is to do, and for clients the port; see the functions of that name.
"""

import select
import socket
import ssl
import sys

NAME = "server.test"
PATIENCE = 30
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def say(*words):
    print(*words, flush=True)


def context(side, version, folder):
    made = ssl.SSLContext(side)
    made.minimum_version = made.maximum_version = VERSIONS[version]
    if side == ssl.PROTOCOL_TLS_CLIENT:
        made.load_verify_locations(folder + "/ca.pem")
    else:
        made.load_cert_chain(folder + "/server.test.pem", folder + "/server.test.key")
    return made


def pattern(count):
    """Bytes that betray any loss, repetition or change of order."""
    return bytes((i * 0x9E3779B97F4A7C15 >> 56) & 0xFF for i in range(count))


def connected(port):
    return socket.create_connection(("127.0.0.1", int(port)), PATIENCE)


def secured(port, version, folder, session=None):
    made = context(ssl.PROTOCOL_TLS_CLIENT, version, folder) if session is None else session[0]
    return made.wrap_socket(
        connected(port),
        server_hostname=NAME,
        suppress_ragged_eofs=False,
        session=session and session[1],
    )


def exactly(sock, count):
    all = bytearray()
    while len(all) < count:
        part = sock.recv(count - len(all))
        if not part:
            raise EOFError
        all += part
    return bytes(all)


def until_end(sock):
    """All that comes, and how it ends: by close_notify, or cut off."""
    all = b""
    while True:
        try:
            part = sock.recv(65536)
        except (ssl.SSLEOFError, ConnectionResetError):
            return all, "cut"
        except ssl.SSLZeroReturnError:  # so it is called when this side had ended before
            return all, "notified"
        if not part:
            return all, "notified"
        all += part


def echoed(sock, word):
    sock.sendall(word)
    assert exactly(sock, len(word)) == word


def bulk(port, version, folder):
    """Both directions at once; then both say close_notify, and what is left is a plain socket.

    In one thread, for two must not use one SSLSocket at the same time.
    """
    sock, text = secured(port, version, folder), pattern(1_000_000)
    sock.setblocking(False)
    sent, came = 0, bytearray()
    while len(came) < len(text):
        idle = True
        if sent < len(text):
            try:
                sent += sock.send(memoryview(text)[sent : sent + 40_000])
                idle = False
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
        try:
            part = sock.recv(65536)
            assert part, "an early end"
            came += part
            idle = False
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        if idle:
            writes = [sock] if sent < len(text) else []
            assert any(select.select([sock], writes, [], PATIENCE)), "nothing goes on"
    assert came == text
    sock.settimeout(PATIENCE)
    plain = sock.unwrap()
    assert plain.recv(1) == b""
    say("unwrapped")


def resume(port, version, folder):
    """Three times; the second and the third with what the one before has brought."""
    first = secured(port, version, folder)
    echoed(first, b"hello")
    context, session, reused = first.context, first.session, [first.session_reused]
    first.unwrap().close()
    for _ in range(2):
        again = secured(port, version, folder, (context, session))
        echoed(again, b"hello")
        session = again.session
        reused.append(again.session_reused)
        again.unwrap().close()
    say("reused", *reused)


def half_close(port, version, folder):
    """Ends its own direction, and only then gets the answer."""
    sock = secured(port, version, folder)
    sock.sendall(pattern(100_000))
    sock.setblocking(False)
    try:
        sock.unwrap()
    except ssl.SSLWantReadError:
        pass
    except ssl.SSLError as error:
        # The answer is here already, and can still be read.
        if error.reason != "APPLICATION_DATA_AFTER_CLOSE_NOTIFY":
            raise
    sock.settimeout(PATIENCE)
    all, end = until_end(sock)
    say("answer", all == pattern(100_000), end)


def told_last(port, version, folder):
    """Is told that the other side has ended, and goes on."""
    sock = secured(port, version, folder)
    all, end = until_end(sock)
    sock.sendall(b"but I am not through\n")
    sock.unwrap()
    say("heard", all.decode(), end)


def cut(port, version, folder):
    """Goes without a word."""
    sock = secured(port, version, folder)
    echoed(sock, b"hello")
    socket.socket(fileno=sock.detach()).close()
    say("gone")


def starttls(port, version, folder):
    """Plain, protected, and plain again."""
    sock = connected(port)
    sock.sendall(b"STARTTLS\n")
    assert exactly(sock, 3) == b"go\n"
    made = context(ssl.PROTOCOL_TLS_CLIENT, version, folder)
    sock = made.wrap_socket(sock, server_hostname=NAME, suppress_ragged_eofs=False)
    echoed(sock, b"secret")
    plain = sock.unwrap()
    echoed(plain, b"public")
    say("plain again")


def accepted(listener, made):
    sock, _ = listener.accept()
    sock.settimeout(PATIENCE)
    return made.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)


def listening():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(PATIENCE)
    say("listening", listener.getsockname()[1])
    return listener


def serve(version, folder):
    """Three in turn: tells whether the session was resumed, echoes, and tells how it ended."""
    listener, made = listening(), context(ssl.PROTOCOL_TLS_SERVER, version, folder)
    for _ in range(3):
        sock = accepted(listener, made)
        say("reused", sock.session_reused)
        while True:
            try:
                part = sock.recv(65536)
            except (ssl.SSLEOFError, ConnectionResetError):
                say("end cut")
                break
            if not part:
                say("end notified")
                sock.unwrap()
                break
            sock.sendall(part)
        sock.close()


def serve_cut(version, folder):
    """Goes in the middle of a word, twice."""
    listener, made = listening(), context(ssl.PROTOCOL_TLS_SERVER, version, folder)
    for _ in range(2):
        sock = accepted(listener, made)
        exactly(sock, 5)
        sock.sendall(b"hal")
        socket.socket(fileno=sock.detach()).close()


def serve_half_closed(version, folder):
    """Answers when it has all, which it knows from the end; the answer is that and more."""
    listener, made = listening(), context(ssl.PROTOCOL_TLS_SERVER, version, folder)
    sock = accepted(listener, made)
    all, end = until_end(sock)
    sock.sendall(all + end.encode())
    sock.unwrap()


def serve_starttls(version, folder):
    """Plain, protected, and plain again."""
    listener, made = listening(), context(ssl.PROTOCOL_TLS_SERVER, version, folder)
    sock, _ = listener.accept()
    sock.settimeout(PATIENCE)
    assert exactly(sock, 9) == b"STARTTLS\n"
    sock.sendall(b"go\n")
    sock = made.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
    sock.sendall(exactly(sock, 6))
    plain = sock.unwrap()
    plain.sendall(exactly(plain, 6))
    say("plain again")


globals()[sys.argv[1]](*sys.argv[2:])
