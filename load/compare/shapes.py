"""Tidegate between clients and an upstream that speak something else than HTTP/1.1 in cleartext.

Owns the configurations and the certificate for that. They are those of the comparison
(`peer config tidegate`, or with its limits) with only the protocols changed. Refuses peers: theirs would be another
comparison, of what was chosen for each.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass

from processes import PEER, Failed, Missing, program, wait_for

PER_CONNECTION = 100
STREAMS_MAX = 200_000
TOOLS = 2


@dataclass(frozen=True)
class Shape:
    """Which protocols are spoken on either side."""
    client_http: int = 1
    client_tls: bool = False
    upstream_http: int = 1
    upstream_tls: bool = False

    @property
    def scheme(self):
        return "https" if self.client_tls else "http"

    def tool_options(self):
        """What the load tool is to be told."""
        options = ["--insecure"] if self.client_tls else []
        if self.client_http == 2:
            # More streams than one thread of the tool opens at speed.
            options += ["--http", "2", "--per-connection", str(PER_CONNECTION),
                        "--processes", str(TOOLS)]
        return tuple(options)

    def simulator_options(self, directory):
        """What the simulated upstream is to be told. As most servers, it takes only so many
        streams on a connection."""
        options = ["--h2-max-streams", str(PER_CONNECTION)]
        if self.upstream_tls:
            options += ["--tls", "--cert-out", str(directory / "ca.pem")]
        return options

    def start(self, processes, contestant, port, upstream, directory):
        """Starts Tidegate in front of the upstream and waits until it listens."""
        if self.client_tls:
            certificate(directory)
        given = subprocess.run([str(PEER), "config", contestant, str(port), str(upstream)],
                               stdout=subprocess.PIPE, text=True, check=True).stdout
        config, log = directory / "tidegate.toml", directory / "tidegate.log"
        config.write_text(self.config(given, directory))
        process = processes.start([program("tidegate"), "serve", "--config", str(config)], log)
        wait_for(port, process, log)
        return process

    def config(self, given, directory):
        """The comparison's configuration with these protocols."""
        text = put(given, r"^streams = \d+$", f"streams = {STREAMS_MAX}")
        # Its last table is the upstream's.
        text += f'http = "{self.upstream_http}"\n'
        if self.upstream_tls:
            text = put(text, "http://", "https://") + f'ca = "{directory / "ca.pem"}"\n'
        if self.client_tls:
            text += (f'\n[server.tls]\ncert = "{directory / "cert.pem"}"\n'
                     f'key = "{directory / "key.pem"}"\n')
        return text


def put(text, what, by):
    """The text with one thing replaced, which has to be there once."""
    text, count = re.subn(what, by, text, flags=re.MULTILINE)
    if count != 1:
        raise Failed(f"tidegate.toml.in has {what!r} {count} times, not once")
    return text


def openssl():
    found = shutil.which("openssl")
    if not found:
        raise Missing("openssl is not installed (load/peers/peer install)")
    return found


def certificate(directory):
    """A key and a certificate of its own for the gateway, for a day."""
    done = subprocess.run(
        [openssl(), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "1", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(directory / "key.pem"),
         "-out", str(directory / "cert.pem")], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"openssl made no certificate: {done.stderr.strip()[-300:]}")
