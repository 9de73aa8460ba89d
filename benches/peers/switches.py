"""The switches that are compared: started, stopped but for their turns, ended."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

from peers import note, output, undisturbed

# As the generator and `vswitch bench` choose: the last two cores.
CORES = sorted(os.sched_getaffinity(0))[-2:]
GENERATOR, WORKER = CORES[0], CORES[-1]
# Contestants ask for 512 MiB each, OVS takes more when its ports come; the generator takes a few.
HUGE_PAGES = 1536
START_SECONDS = 30
# The generator's guests.
GUESTS = [("52:54:00:be:00:01", "10.99.0.1"), ("52:54:00:be:00:02", "10.99.0.2")]


def wait_for(what, condition):
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.01)
    raise RuntimeError(f"{what}: not within {START_SECONDS} seconds")


class Peer:
    """A switch in processes of its own, stopped but for its turns."""

    def __init__(self, pids, sockets, prefix=None, console=None):
        self.pids, self.sockets, self.prefix, self.console = pids, sockets, prefix, console

    def prepare(self, name):
        """For a turn of that name."""

    def signal(self, number):
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    @contextlib.contextmanager
    def turn(self, name):
        self.signal(signal.SIGCONT)
        try:
            self.prepare(name)
            yield self.sockets
        finally:
            self.signal(signal.SIGSTOP)

    def end(self):
        """Until they are gone: what comes next may need their memory, or their names."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if self.console:
            self.console.close()
        try:
            wait_for("the end of a switch", self.gone)
        except RuntimeError as error:
            note(f"{error}: killed")
            self.signal(signal.SIGKILL)
            wait_for("the end of a killed switch", self.gone)
        if self.prefix:
            # DPDK leaves it behind.
            shutil.rmtree(os.path.join("/run/dpdk", self.prefix), ignore_errors=True)

    def gone(self):
        for pid in self.pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return not any(os.path.exists(f"/proc/{pid}") for pid in self.pids)

    @contextlib.contextmanager
    def ended_if_it_fails(self):
        try:
            yield
        except BaseException:
            with undisturbed():
                self.end()
            raise

    def resident(self):
        """Bytes that all its processes keep resident, reserved huge pages included."""
        kib = 0
        for pid in self.pids:
            with open(f"/proc/{pid}/status", encoding="ascii") as file:
                fields = dict(line.split(":", 1) for line in file)
            kib += sum(int(fields[name].split()[0]) for name in ("VmRSS", "HugetlbPages"))
        return kib << 10


class Ours(Peer):
    """`vswitch run` with spoof guard, connection table, windows and 100 rules, of which the last one admits the load."""

    def __init__(self, vswitch, where, connections=2_000_000, connects=False, ports=None, inside=()):
        """`connects`: to sockets where the guests listen. `ports`: kind and keys of each guest's port; default: vhost-user. `inside`: command
        that runs it in a namespace."""
        sockets = [os.path.join(where, f"{name}.sock") for name in "ab"]
        mode = "client" if connects else "server"
        ports = ports or [f'kind = "vhost-user"\nmode = "{mode}"\nsocket = "{socket}"' for socket in sockets]
        lines = ['policy = "policy.toml"', "[switch]", f"workers = [{WORKER}]", 'poll = "busy"', f"connections = {connections}", f'socket = "{where}/api.sock"']
        for name, port, (mac, ip) in zip("ab", ports, GUESTS):
            lines += ["[[port]]", f'name = "{name}"', port, f"max_connections = {connections}"]
            lines += ["[[port.workload]]", f'name = "{name}"', f'mac = ["{mac}"]', f'ip = ["{ip}"]']
        rule = lambda name, service, action: f'[[rule]]\nname = "{name}"\nfrom = "any"\nto = "any"\nservice = {service}\naction = "{action}"\n'
        policy = [rule(f"deny-{port}", f'"tcp/{port}"', "deny") for port in range(10001, 10100)] + [rule("load", '["udp", "tcp"]', "allow")]
        for name, text in (("switch.toml", lines), ("policy.toml", policy)):
            with open(os.path.join(where, name), "w", encoding="ascii") as file:
                file.write("\n".join(text))
        self.command, self.where = [*inside, vswitch, "run", "-c", os.path.join(where, "switch.toml")], where
        self.status = [vswitch, "--socket", os.path.join(where, "api.sock"), "--json", "status"]
        super().__init__([], sockets)

    def start(self):
        with open(os.path.join(self.where, "log"), "w", encoding="utf-8") as log:
            self.pids = [subprocess.Popen(self.command, stdout=log, stderr=log).pid]

    def ready(self, ports_up=0):
        """Once it answers, and so many ports have a peer."""
        def up():
            if self.gone():
                with open(os.path.join(self.where, "log"), encoding="utf-8") as log:
                    raise RuntimeError(f"ours: {log.read()[-300:]}")
            done = subprocess.run(self.status, capture_output=True, check=False)
            return done.returncode == 0 and json.loads(done.stdout)["ports_up"] >= ports_up

        wait_for("ours", up)

    @contextlib.contextmanager
    def turn(self, name):
        """It starts in a moment, so each turn has a fresh one, with an empty table."""
        self.start()
        try:
            self.ready()
            yield self.sockets
        finally:
            with undisturbed():
                self.end()

    def end(self):
        if self.pids:
            super().end()
            self.pids = []


def testpmd(where, devices, memory, *more, inside=()):
    """DPDK's testpmd in `io` mode: what comes in by one of two devices goes out by the other. `inside`: as for ours."""
    log, prefix = os.path.join(where, "log"), f"peer-{os.getpid()}"
    # By lines: what it says is read while it runs.
    command = [*inside, "stdbuf", "-oL", "dpdk-testpmd", "-l", f"{GENERATOR},{WORKER}", "--no-pci", "--no-telemetry", *memory, "--file-prefix", prefix]
    for device in devices:
        command += ["--vdev", device]
    command += ["--", "--forward-mode=io", "--auto-start", "--disable-link-check", "--nb-cores=1", "--total-num-mbufs=16384", *more]
    with open(log, "w", encoding="utf-8") as file:
        # It ends when its standard input does.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file)
    peer = Peer([process.pid], [], prefix, process.stdin)

    def said():
        with open(log, encoding="utf-8") as file:
            return file.read()

    with peer.ended_if_it_fails():
        wait_for("testpmd", lambda: process.poll() is not None or "Press enter" in said())
    if process.poll() is not None:
        raise RuntimeError(f"testpmd: exit code {process.returncode}: {said()[-300:]}")
    return peer


def testpmd_vhost(where, huge):
    sockets = [os.path.join(where, f"{name}.sock") for name in "ab"]
    devices = [f"net_vhost{i},iface={socket}" for i, socket in enumerate(sockets)]
    peer = testpmd(where, devices, ["-m", "512"] + (["--in-memory"] if huge else ["--no-huge"]), "--txd=1024", "--rxd=1024")
    peer.sockets = sockets
    return peer


def rules(conntrack):
    """Flows of the bridge whose ports are 1 and 2."""
    if not conntrack:
        return ["in_port=1,actions=output:2", "in_port=2,actions=output:1"]
    flows = ["table=0,ip,ct_state=-trk,actions=ct(table=1)"]
    flows += [f"table=1,priority=200,tcp,ct_state=+trk+new,tp_dst={port},actions=drop" for port in range(10001, 10100)]
    for here, there in ((1, 2), (2, 1)):
        for protocol in ("udp", "tcp"):
            flows.append(f"table=1,priority=100,in_port={here},{protocol},ct_state=+trk+new,actions=ct(commit),output:{there}")
        flows.append(f"table=1,priority=100,in_port={here},ip,ct_state=+trk+est,actions=output:{there}")
    return flows + ["table=1,priority=0,actions=drop"]


class Ovs(Peer):
    """An OVS of its own: database, daemon and sockets in this directory. One for all contestants, as its datapath has an interface
    of a fixed name."""

    BRIDGE = "peer-ovs"

    def __init__(self, where, connects=False, memory="-m 512", standalone=False):
        """`connects`: to sockets where the guests listen, and with TSO, which it has only so."""
        self.environment = dict(os.environ, **{f"OVS_{name}DIR": where for name in ("RUN", "DB", "LOG", "SYSCONF")})
        self.where = where
        super().__init__([], [self.at("a"), self.at("b")], f"peer-ovs-{os.getpid()}")
        self.database = f"unix:{self.at('db.sock')}"
        self.do("ovsdb-tool", "create", self.at("conf.db"), "/usr/share/openvswitch/vswitch.ovsschema")
        self.do("ovsdb-server", self.at("conf.db"), f"--remote=p{self.database}", f"--pidfile={self.at('ovsdb.pid')}", "--detach",
                f"--log-file={self.at('ovsdb.log')}", f"--unixctl={self.at('ovsdb.ctl')}")
        self.pids = [self.pid("ovsdb.pid")]
        settings = {
            "dpdk-init": "true",
            "dpdk-lcore-mask": hex(1 << GENERATOR),
            "pmd-cpu-mask": hex(1 << WORKER),
            "dpdk-extra": f"--no-pci {memory} --file-prefix {self.prefix}",
            "userspace-tso-enable": str(connects).lower(),
        }
        mode = "standalone" if standalone else "secure"
        with self.ended_if_it_fails():
            self.vsctl("--no-wait", "set", "Open_vSwitch", ".", *(f'other_config:{key}="{value}"' for key, value in settings.items()))
            self.vsctl("--no-wait", "add-br", self.BRIDGE, "--", "set", "bridge", self.BRIDGE, "datapath_type=netdev", f"fail_mode={mode}")
            for number, name in enumerate("ab", 1):
                kind = ["type=dpdkvhostuserclient", f"options:vhost-server-path={self.at(name)}"] if connects else ["type=dpdkvhostuser"]
                self.vsctl("--no-wait", "add-port", self.BRIDGE, name, "--", "set", "Interface", name, f"ofport_request={number}", *kind)

    def at(self, name):
        return os.path.join(self.where, name)

    def pid(self, name):
        with open(self.at(name), encoding="ascii") as file:
            return int(file.read())

    def do(self, *command):
        if output(list(command), START_SECONDS, env=self.environment) is None:
            raise RuntimeError(f"{command[0]} failed")

    def vsctl(self, *command):
        self.do("ovs-vsctl", f"--db={self.database}", "--timeout=20", *command)

    def start(self):
        """The daemon, with all that the database says; returns at once."""
        with open(self.at("daemon.log"), "w", encoding="utf-8") as log:
            daemon = ["/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk", self.database, f"--pidfile={self.at('ovs.pid')}",
                      f"--log-file={self.at('ovs.log')}", f"--unixctl={self.at('ovs.ctl')}"]
            self.pids.append(subprocess.Popen(daemon, env=self.environment, stdout=log, stderr=log).pid)

    def ready(self):
        with self.ended_if_it_fails():
            # Returns when all that the database says is in force.
            self.vsctl("set", "bridge", self.BRIDGE, "other_config:ready=true")
        return self

    def prepare(self, name):
        """The rules of this contestant, and no connections."""
        with open(self.at("flows"), "w", encoding="ascii") as file:
            file.write("\n".join(rules(name == "ovs-ct")))
        target = f"unix:{self.at(self.BRIDGE + '.mgmt')}"
        self.do("ovs-ofctl", "del-flows", target)
        self.do("ovs-ofctl", "add-flows", target, self.at("flows"))
        self.do("ovs-appctl", "-t", self.at("ovs.ctl"), "dpctl/flush-conntrack")


def ovs(where, **kwargs):
    """Such an OVS, ready to forward."""
    switch = Ovs(where, **kwargs)
    with switch.ended_if_it_fails():
        switch.start()
    return switch.ready()


@contextlib.contextmanager
def begun(starts):
    """Those that start, by name, stopped, and ended at the end; who does not start is noted. `starts`: name -> what starts it in a directory."""
    switches = {}
    with tempfile.TemporaryDirectory(prefix="vswitch-peers-") as top:
        try:
            for name, start in starts.items():
                where = os.path.join(top, name)
                os.mkdir(where)
                try:
                    switches[name] = start(where)
                    switches[name].signal(signal.SIGSTOP)
                except (OSError, RuntimeError) as error:
                    note(f"{name}: no result: {error}")
            yield switches
        finally:
            with undisturbed():
                for switch in {id(switch): switch for switch in switches.values()}.values():
                    switch.end()
