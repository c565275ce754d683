"""The edge to Linux: the TUN device, the UDP sockets, routes and marks."""
