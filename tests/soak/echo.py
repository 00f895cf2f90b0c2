"""A server for datagrams: `echo.py NAME PORT`. Answers each with its first two bytes and NAME."""

import socket
import sys


def main(name: str, port: int) -> None:
    """Answer until somebody ends this program."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as line:
        line.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        line.bind(("::", port))
        print("bound", flush=True)
        while True:
            try:
                asked, client = line.recvfrom(2000)
                line.sendto(asked[:2] + name.encode(), client)
            except OSError:  # an ICMP error, or nowhere to send it
                continue


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
