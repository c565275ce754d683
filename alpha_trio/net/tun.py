"""The TUN device: super-packets in and out, one system call each.

The device is made by ``ioctl`` and lives as long as its file descriptor, so that
it vanishes with the process, however that ends.  With ``IFF_VNET_HDR`` every read
and write starts with a virtio header (see proto/frames.py), and with
``TUNSETOFFLOAD`` the kernel may hand over up to 64 KiB of one flow at once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from struct import Struct

import trio
from attrs import define, field

from alpha_trio.errors import DeviceLost, StartError
from alpha_trio.net.host import receive_buffer
from alpha_trio.proto.batch import Buffer
from alpha_trio.proto.packets import Train, frames
from alpha_trio.settings import Offload

_DEVICE = "/dev/net/tun"
_IFREQ = Struct("16sH22x")  # interface name, flags
_TUNSETIFF, _TUNGETIFF = 0x400454CA, 0x800454D2
_TUNSETOFFLOAD = 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_IFF_MULTI_QUEUE, _IFF_TUN_EXCL = 0x0100, 0x8000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN = 0x01, 0x02, 0x04, 0x08
_TUN_F_USO4, _TUN_F_USO6 = 0x20, 0x40  # since Linux 6.2

_LOST = frozenset({errno.EBADFD, errno.EIO, errno.ENODEV})
"""What is said of a deleted interface; all else passes."""

TunTraits = tuple[str, tuple[str, ...], bool, bool]

_FRAME_ROOM = 65_536 + frames.VIRTIO_SIZE
_BUFFER_SIZE = 1 << 20
_LARGE = 1 << 15  # bytes of a frame that is not worth to be copied


@define(eq=False)
class Tun:
    """An open TUN device.  Reads are views of one buffer; see ``start_batch``.

    Or one of its queues: of those the kernel chooses one for each flow, and that by
    which packets of the flow came in.
    """

    name: str
    offloads: tuple[str, ...] = ()  # what the kernel agreed to, for status
    _fd: int = -1  # -1 when closed, so that a late call fails and hits no other file
    _has_virtio: bool = False
    _takes_uso: bool = False
    _queued: bool = False  # whether there may be more queues
    _buffer: memoryview = field(factory=lambda: receive_buffer(_BUFFER_SIZE))
    _filled: int = 0
    _ahead: memoryview | None = None  # a frame that was read, and not asked for yet
    _left: int = 0  # reads of this batch
    _after_large: bool = False  # whether the last frame was
    drained: bool = False  # whether the kernel had no more in this batch

    @classmethod
    def open(
        cls, name: str, disabled: Collection[Offload] = (), *, queued: bool = False
    ) -> Tun:
        """Create the device ``name``, with every offload that is not ``disabled``.

        ``queued``: this is the first of the queues that it has.
        Raises StartError with the remedy if that is not possible.
        """
        if Path("/sys/class/net", name).exists():
            raise _taken(name)
        tun = cls(name, queued=queued)
        # /sys may be that of other interfaces than ours, or this name just be taken: a
        # queue more is what the kernel would make then of a device that has queues.
        tun._create(disabled, _IFF_TUN_EXCL)
        return tun

    def another(self, disabled: Collection[Offload] = ()) -> Tun:
        """One more queue of the same device.  Raises StartError."""
        tun = Tun(self.name, queued=True)
        tun._create(disabled)
        return tun

    def _create(self, disabled: Collection[Offload], flags: int = 0) -> None:
        name = self.name
        try:
            self._fd = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _no_device(error) from None
        try:
            self._attach(disabled, flags)
        except OSError as error:
            self.close()
            raise _not_attached(name, error) from None

    def fileno(self) -> int:
        """Its descriptor, to be sent to another process."""
        return self._fd

    @property
    def traits(self) -> TunTraits:
        """What another process has to know of it, beside its descriptor."""
        return self.name, self.offloads, self._has_virtio, self._takes_uso

    @classmethod
    def adopt(cls, descriptor: int, traits: TunTraits) -> Tun:
        """One that another process has opened, by a descriptor that it has sent."""
        name, offloads, has_virtio, takes_uso = traits
        return cls(name, offloads, descriptor, has_virtio, takes_uso)

    def _attach(self, disabled: Collection[Offload], flags: int) -> None:
        flags |= _IFF_TUN | _IFF_NO_PI
        self._has_virtio = Offload.VNET_HDR not in disabled
        if self._has_virtio:
            flags |= _IFF_VNET_HDR
        if self._queued:
            flags |= _IFF_MULTI_QUEUE
        ioctl(self._fd, _TUNSETIFF, _IFREQ.pack(self.name.encode(), flags))
        if self._has_virtio:
            self._negotiate(disabled)

    def _negotiate(self, disabled: Collection[Offload]) -> None:
        """Ask for the most the kernel has; older ones refuse what they do not know."""
        tcp = _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN
        udp = _TUN_F_USO4 | _TUN_F_USO6
        for want_tcp, want_udp in ((True, True), (True, False), (False, False)):
            use_tcp = want_tcp and Offload.TSO not in disabled
            use_udp = want_udp and Offload.USO not in disabled
            mask = _TUN_F_CSUM | (tcp if use_tcp else 0) | (udp if use_udp else 0)
            try:
                ioctl(self._fd, _TUNSETOFFLOAD, mask)
            except OSError:
                continue
            self._takes_uso = use_udp
            names = ["vnet-hdr", "csum"]
            names += ["tso4", "tso6"] if use_tcp else []
            names += ["uso4", "uso6"] if use_udp else []
            self.offloads = tuple(names)
            return
        self.offloads = ("vnet-hdr",)

    @property
    def current_name(self) -> str:
        """What it is called now; somebody may have renamed it."""
        request = bytearray(_IFREQ.size)
        try:
            ioctl(self._fd, _TUNGETIFF, request)
        except OSError:  # deleted: the next read tells
            return self.name
        return request[:16].rstrip(b"\0").decode(errors="replace")

    async def wait_readable(self) -> None:
        """Wait until a packet is there.  A checkpoint; cancellation loses nothing."""
        if self._ahead is not None:  # a batch that ended early left it
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.wait_readable(self._fd)

    def start_batch(self, most: int) -> None:
        """Reuse the buffer: views handed out so far hold no longer.

        The batch ends after ``most`` reads, or when the kernel has no more.
        """
        self._filled = 0
        self._left, self.drained = most, False
        if self._ahead is not None:
            size = len(self._ahead)
            self._buffer[:size] = self._ahead
            self._ahead, self._filled = self._buffer[:size], size

    def read_nowait(self) -> memoryview | None:
        """The next frame (virtio header and packet) of this batch, or None.

        Equal datagrams of a flow that follow one another come as one super-packet, and
        its acknowledgments in one frame.  The view holds until ``start_batch``, or
        longer if it is one of bytes.  Raises DeviceLost if the interface was deleted,
        OSError if the host has no memory for it.
        """
        frame = self._read() if self._ahead is None else self._ahead
        self._ahead = None
        if frame is None:
            return None
        train = Train.of(frame, datagrams=self._takes_uso)
        if train is None:
            return frame
        start = self._filled - len(frame)
        while (other := self._read_on()) is not None:
            end = start + train.size
            if not train.takes(other):
                self._ahead = other
                break
            # What was read behind the train becomes its end.
            self._buffer[end : end + train.payload] = other[train.head :]
            self._filled = end + train.payload
        frame = self._buffer[start : start + train.size]
        train.finish(frame)
        return frame

    def _read_on(self) -> memoryview | None:
        """The next frame behind a train; what the host refuses, the next read says."""
        try:
            return self._read()
        except OSError:
            return None

    def _read(self) -> memoryview | None:
        start = self._filled
        room = self._buffer[start : start + _FRAME_ROOM]
        if len(room) < _FRAME_ROOM or not self._left:
            return None
        self._left -= 1
        try:
            frame = self._fill(room)
        except BlockingIOError:
            self.drained, self._left = True, 0
            return None
        except OSError as error:
            if error.errno in _LOST:
                raise DeviceLost(_lost(self.name, error)) from None
            raise
        self._filled = start + len(frame)
        return frame

    def _fill(self, room: memoryview) -> memoryview:
        """Read a frame, if nothing speaks against it into ``room``.

        Large ones come one after the other, and are kept until they are sent; so after
        one the next is read into bytes of its own, which need not be copied for that.
        """
        if self._after_large:
            read = os.read(self._fd, _FRAME_ROOM)
            if len(read) >= _LARGE:
                return memoryview(read)
            self._after_large = False
            room[: len(read)] = read
            return room[: len(read)]
        skip = 0 if self._has_virtio else frames.VIRTIO_SIZE
        size = os.readv(self._fd, [room[skip:]])
        self._after_large = size >= _LARGE and not skip
        if skip:
            room[:skip] = bytes(skip)
        return room[: skip + size]

    def write_nowait(self, parts: list[Buffer]) -> bool:
        """Write one frame; False if the kernel refuses it (it may be malformed).

        Raises DeviceLost if the interface was deleted.
        """
        try:
            if self._has_virtio and (self._takes_uso or not _is_uso(parts)):
                os.writev(self._fd, parts)
            else:
                self._write_finished(parts)
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise DeviceLost(_lost(self.name, error)) from None
            return False
        return True

    def _write_finished(self, parts: list[Buffer]) -> None:
        head = bytes(frames.VIRTIO_SIZE) if self._has_virtio else b""
        for packet in frames.finished(parts):
            os.writev(self._fd, [head, packet])

    def close(self) -> None:
        """Close it: the interface is gone then.  May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(RuntimeError):  # outside of trio nobody can be waiting
                trio.lowlevel.notify_closing(fd)
            os.close(fd)


def _is_uso(parts: list[Buffer]) -> bool:
    return parts[0][1] == frames.GSO_UDP_L4


def _taken(name: str) -> StartError:
    text = (
        f"an interface named {name} exists already: choose another name with "
        "--interface"
    )
    # Others are a network card, or somebody's bridge: nothing to be deleted lightly.
    if _is_tun(name):
        text += f", or, if nobody needs it, remove it with 'ip link delete {name}'"
    return StartError(text)


def _is_tun(name: str) -> bool:
    try:
        flags = Path("/sys/class/net", name, "tun_flags").read_text()
    except OSError:  # only TUN and TAP devices have it
        return False
    return bool(int(flags, 16) & _IFF_TUN)


def _no_device(error: OSError) -> StartError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return StartError(f"no permission to open {_DEVICE}: run as root")
    return StartError(
        f"cannot open {_DEVICE} ({error.strerror}): load the module with "
        "'modprobe tun', or give the container this device"
    )


def _not_attached(name: str, error: OSError) -> StartError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return StartError(
            f"no permission to create the interface {name}: run as root, or grant "
            "CAP_NET_ADMIN"
        )
    if error.errno == errno.EBUSY:
        return StartError(
            f"the interface {name} is in use by another process: choose another one "
            "with --interface"
        )
    return StartError(
        f"cannot create the interface {name} ({error.strerror}): choose another name "
        "with --interface"
    )


def _lost(name: str, error: OSError) -> str:
    return (
        f"the interface {name} is gone ({error.strerror}): something deleted it; "
        "start alpha-trio again"
    )
