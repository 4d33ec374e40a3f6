"""A local Ray is for this machine alone."""

from pathlib import Path


def listening() -> set[tuple[str, int]]:
    """(hexadecimal address, process) of TCP sockets on which processes of this Ray's session listen."""
    inodes = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                inodes[fields[9]] = fields[1].rpartition(":")[0]
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            if b"gcs_server" not in command and b"raylet" not in command:
                continue
            for fd in (process / "fd").iterdir():
                inode = fd.readlink().name.removeprefix("socket:[").rstrip("]")
                if inode in inodes:
                    found.add((inodes[inode], int(process.name)))
        except OSError:
            continue
    return found


def test_ray_listens_on_loopback_only(ray_session):
    import ray

    assert ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")
    loopback = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    found = listening()
    assert found and {address for address, _ in found} <= set(loopback)
