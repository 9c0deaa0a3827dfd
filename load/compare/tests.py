#!/usr/bin/env python3
"""What can be tested of the comparison without peers and without minutes: arithmetic, tables,
charts, the page, both ends of a stream, and that nothing is left running.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / "peers"
sys.path[:0] = [str(HERE), str(PEERS)]

import chart
import cost
import ends
import figures
import processes
import publish
import rounds
import short
import stage
import tables
import tool
import works
from figures import Cell, Derived, Figure

DEADLINE_S = 20


def run(work, round_, contestant, found, marked=(), attempt=1):
    return {"work": work, "round": round_, "contestant": contestant, "attempt": attempt,
            "figures": found, "marked": list(marked), "command": None, "detail": None}


def report(runs, rows=None, names=("tidegate", "nginx", "raw-relay", "direct")):
    rows = rows or (Figure("cpu", "CPU, µs", gateway=True),
                    Figure("ratio", "ratio", digits=2, gateway=True,
                           derived=Derived("cpu", "over", "raw-relay")),
                    Figure("p99", "p99, µs", digits=0),
                    Figure("added", "added, µs", digits=0, derived=Derived("p99", "minus", "direct")))
    work = {"name": "w", "kind": "cpu", "title": "work", "figures": [asdict(one) for one in rows]}
    return {"benchmark": "compare", "works": [work], "runs": runs, "complete": True, "left_out": [],
            "tools": {"wrk": "4"}, "contestants": [{"name": name, "version": "1"} for name in names],
            "options": {"rounds": 3, "quick": False, "only": [], "work": []},
            "machine": {"date": "d", "virtual": True, "cores": 2, "cpu": "c", "memory_gib": 1,
                        "system": "s", "kernel": "k", "revision": None}}


def rounds_of(contestant, key, values):
    return [run("w", n, contestant, {key: value}) for n, value in enumerate(values, 1)]


class Arithmetic(unittest.TestCase):
    def test_median_and_range(self):
        found = figures.cells(report(rounds_of("nginx", "cpu", [3.0, 1.0, 2.5])))["w"]["cpu"]["nginx"]
        self.assertEqual((found.median, found.low, found.high, found.rounds), (2.5, 1.0, 3.0, 3))

    def test_the_last_attempt_of_a_round_counts(self):
        runs = [run("w", 1, "nginx", {"cpu": 9.0}, ["rate"]), run("w", 1, "nginx", {"cpu": 2.0}, attempt=2)]
        found = figures.cells(report(runs))["w"]["cpu"]["nginx"]
        self.assertEqual((found.values, found.marks), ([2.0], Counter()))

    def test_marked_rounds_count_only_without_others(self):
        good, bad = run("w", 1, "nginx", {"cpu": 2.0}), run("w", 2, "nginx", {"cpu": 9.0}, ["rate"])
        found = figures.cells(report([good, bad]))["w"]["cpu"]["nginx"]
        self.assertEqual((found.values, found.left_out, found.doubtful), ([2.0], 1, False))
        self.assertEqual(found.marks, Counter(rate=1))
        found = figures.cells(report([bad]))["w"]["cpu"]["nginx"]
        self.assertEqual((found.values, found.left_out, found.doubtful), ([9.0], 0, True))

    def test_differences_and_ratios_are_of_one_round(self):
        runs = (rounds_of("nginx", "p99", [110, 220, 430]) + rounds_of("direct", "p99", [10, 20, 400])
                + [run("w", 4, "nginx", {"p99": 5000})])
        added = figures.cells(report(runs))["w"]["added"]
        self.assertEqual((added["nginx"].values, added["nginx"].missing), ([100, 200, 30], 1))
        self.assertNotIn("direct", added)
        runs = rounds_of("nginx", "cpu", [12.0, 30.0]) + rounds_of("raw-relay", "cpu", [10.0, 20.0])
        ratio = figures.cells(report(runs))["w"]["ratio"]
        self.assertEqual((ratio["nginx"].median, ratio["raw-relay"].values), (1.35, [1.0, 1.0]))

    def test_a_difference_carries_the_marks_of_both(self):
        runs = [run("w", 1, "nginx", {"p99": 110}), run("w", 1, "direct", {"p99": 10}, ["rate"])]
        found = figures.cells(report(runs))["w"]
        self.assertEqual(found["added"]["nginx"].marks, Counter({"direct: rate": 1}))
        self.assertFalse(found["p99"]["nginx"].marks)

    def test_outcomes_are_counted(self):
        runs = [run("w", 1, "nginx", {"cpu": {"abort": 2, "clean end": 1}}),
                run("w", 2, "nginx", {"cpu": "never"}), run("w", 3, "nginx", {})]
        found = figures.cells(report(runs))["w"]["cpu"]["nginx"]
        self.assertEqual(found.words, Counter({"abort": 2, "clean end": 1, "never": 1}))
        self.assertEqual((found.missing, found.rounds, found.median), (1, 3, None))

    def test_a_summary_is_json(self):
        whole = report(rounds_of("nginx", "cpu", [1.0, 2.0]))
        self.assertEqual(json.loads(json.dumps(figures.summary(whole)))["w"]["cpu"]["nginx"]["median"], 1.5)


class Tables(unittest.TestCase):
    def lines(self, whole):
        return tables.table(whole, "cpu").splitlines()

    def test_the_best_is_bold_whoever_it_is(self):
        runs = (rounds_of("tidegate", "cpu", [5.0, 6.0]) + rounds_of("nginx", "cpu", [4.0, 4.0])
                + rounds_of("raw-relay", "cpu", [1.0, 1.0]))
        line = self.lines(report(runs))[2]
        self.assertEqual(line, "| work: CPU, µs | 5.5 (5.0–6.0) | **4.0** | 1.0 |")

    def test_a_tie_is_bold_for_both_and_high_may_be_best(self):
        high = [Figure("cpu", "rate", digits=0, best="high")]
        runs = rounds_of("tidegate", "cpu", [7.1]) + rounds_of("nginx", "cpu", [6.9])
        self.assertIn("| **7** | **7** |", self.lines(report(runs, high))[2])
        runs = rounds_of("tidegate", "cpu", [5]) + rounds_of("nginx", "cpu", [6])
        self.assertIn("| 5 | **6** |", self.lines(report(runs, high))[2])

    def test_marked_values_are_never_bold_and_say_why(self):
        runs = [run("w", 1, "tidegate", {"cpu": 1.0}, ["coalesced"])]
        runs += rounds_of("nginx", "cpu", [4.0]) + rounds_of("raw-relay", "cpu", [1.0])
        lines = self.lines(report(runs))
        self.assertIn("| 1.0 † | 4.0 | 1.0 |", lines[2])
        self.assertIn("† work: coalesced (more than 1 %", lines[-1])
        self.assertIn("tidegate in 1 of 1 rounds", lines[-1])

    def test_words_and_missing_values(self):
        row = [Figure("cpu", "client sees", best=None, missing="nothing")]
        whole = report([run("w", 1, "nginx", {"cpu": {"abort": 3}}),
                        run("w", 1, "tidegate", {"cpu": {"abort": 2, "clean end": 1}}),
                        run("w", 1, "raw-relay", {})], row)
        self.assertEqual(self.lines(whole)[2],
                         "| work: client sees | abort (2 of 3), clean end (1 of 3) | abort | nothing |")

    def test_a_failed_run_shows_its_reason(self):
        lines = self.lines(report([run("w", 1, "nginx", {}, ["failed: not listening"])]))
        self.assertIn("– †", lines[2])
        self.assertIn("failed: not listening", lines[-1])

    def test_the_setting_names_who_is_absent_and_what_is_broken(self):
        whole = report([])
        whole["contestants"].append({"name": "gin", "absent": "no go"})
        whole["left_out"], whole["complete"] = ["short requests: no wrk"], False
        text = tables.setting(whole)
        for part in ("gin (no go)", "no wrk", "interrupted", "nginx 1", "wrk 4"):
            self.assertIn(part, text)


class Charts(unittest.TestCase):
    def test_ticks_hold_zero_and_everything(self):
        for low, high in ((0, 0.14), (3, 57.3), (-18, 4), (-3, -1), (0, 0), (0, 2_800_000)):
            marks = chart.ticks(low, high)
            self.assertIn(0, marks)
            self.assertTrue(marks[0] <= low and marks[-1] >= high and len(marks) <= 10, marks)

    def test_a_chart_is_xml_with_text_and_a_dark_style(self):
        figure = Figure("cpu", "CPU")
        row = {"a<b": Cell(values=[1, 2, 3], rounds=3), "c": Cell(values=[-2], rounds=1)}
        image = chart.bars("T & U", ["a<b", "c"], [("series", figure, row)])
        root = ElementTree.fromstring(image)
        text = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
        self.assertTrue({"a<b", "2.0 (1.0–3.0)", "−2.0", "series", "T & U"} <= set(text), text)
        self.assertIn("prefers-color-scheme: dark", image)
        widths = [float(one.get("width")) for one in root.iter("{http://www.w3.org/2000/svg}rect")]
        self.assertAlmostEqual(widths[1], widths[2], places=0)

    def test_every_chart_draws_a_figure_that_exists(self):
        known = {(one.kind, figure.key) for one in works.works(works.Extent()) for figure in one.figures}
        self.assertTrue({(kind, key) for _, _, kind, key in chart.CHARTS} <= known)


class Page(unittest.TestCase):
    def test_only_what_is_between_the_markers_changes(self):
        page = "a\n<!-- compare:x -->\nold\n<!-- /compare:x -->\nb"
        once = publish.fill(page, "compare:x", "new")
        self.assertEqual(once, "a\n<!-- compare:x -->\nnew\n<!-- /compare:x -->\nb")
        self.assertEqual(publish.fill(once, "compare:x", "new"), once)
        for broken in ("none", page + page, "<!-- /compare:x --><!-- compare:x -->"):
            with self.assertRaises(processes.Failed):
                publish.fill(broken, "compare:x", "new")

    def test_the_page_has_a_place_for_every_part(self):
        page = publish.PAGE.read_text()
        for one in (works.COMPARE, cost.PRICE):
            for section in one.sections({**report([]), "benchmark": one.name}, {}):
                self.assertIn("NEW", publish.fill(page, f"{one.name}:{section}", "NEW"))

    def test_short_and_broken_runs_are_refused(self):
        self.assertIsNone(publish.why_not(report([])))
        for key, value in (("quick", True), ("only", ["nginx"]), ("work", ["cpu"]), ("rounds", 2)):
            whole = report([])
            whole["options"][key] = value
            self.assertIsNotNone(publish.why_not(whole))
        self.assertIsNotNone(publish.why_not({**report([]), "complete": False}))

    def test_publishing_writes_page_charts_and_figures(self):
        runs = [run("cpu-1000x10", 1, name, {"cpu_total": 5.0, "relay_p99": 9})
                for name in ("tidegate", "nginx", "raw-relay", "direct")]
        whole = report([{**one, "detail": {"long": 1}} for one in runs])
        whole["works"] = [one.described() for one in works.works(works.Extent())]
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder, "page.md")
            page.write_text(publish.PAGE.read_text())
            with mock.patch.multiple(publish, PAGE=page, FOLDER=Path(folder, "figures")):
                publish.publish(whole, works.COMPARE.sections, chart.charts(whole))
            text, kept = page.read_text(), json.loads(Path(folder, "figures", "compare.json").read_text())
            self.assertIn("](benchmarks/cpu.svg)", text)
            self.assertIn("| **5.0** | **5.0** |", text)
            self.assertIn(publish.NOT_RUN, text)
            self.assertTrue(Path(folder, "figures", "cpu.svg").exists())
            self.assertNotIn("detail", kept["runs"][0])


class Works(unittest.TestCase):
    def test_names_are_unique_and_figures_survive_the_report(self):
        for extent in (works.Extent(), works.QUICK):
            everything = works.works(extent)
            self.assertEqual(len({one.name for one in everything}), len(everything))
            for one in everything:
                kept = json.loads(json.dumps(one.described()))["figures"]
                self.assertEqual(tuple(map(Figure.read, kept)), one.figures)

    def test_a_round_has_everyone_once_and_begins_with_another_each_time(self):
        own = works.Work("own", "x", "t", 1, (Figure("a", "a"),), None, only=("tidegate",))
        both = works.Work("both", "x", "t", 1, (Figure("a", "a"),), None, direct=True)
        order = list(rounds.plan([own, both], ["tidegate", "nginx", "direct"], 3))
        self.assertEqual([name for _, work, name in order if work is own], ["tidegate"] * 3)
        of_both = [[name for r, work, name in order if work is both and r == n] for n in (1, 2, 3)]
        self.assertEqual([sorted(one) for one in of_both], [["direct", "nginx", "tidegate"]] * 3)
        self.assertEqual(len({one[0] for one in of_both}), 3)

    def test_a_full_run_is_done_in_half_an_hour(self):
        everyone = ["tidegate", "tidegate-limited", "raw-relay", "nginx", "haproxy", "envoy", "gin", "direct"]
        full = rounds.plan(works.works(works.Extent()), everyone, works.COMPARE.rounds)
        self.assertLess(sum(work.seconds for _, work, _ in full), 30 * 60)

    def measured(self, outcomes):
        """The runs that a work with these outcomes leaves in the report."""
        left = list(outcomes)

        def once(*_):
            outcome = left.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return {"figures": {"a": 1.0}, "marked": outcome, "command": None, "detail": None}

        work = works.Work("w", "x", "t", 1, (Figure("a", "a"),), once)
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(rounds, "say"):
            path = Path(folder, "report.json")
            whole = {**report([]), "works": [work.described()]}
            rounds.measure(rounds.Recorder(whole, path), [(1, work, "nginx")])
            return json.loads(path.read_text())["runs"]

    def test_marked_runs_are_repeated_and_all_are_kept(self):
        self.assertEqual(len(self.measured([[]])), 1)
        runs = self.measured([["rate"], []])
        self.assertEqual([one["marked"] for one in runs], [["rate"], []])
        runs = self.measured([["rate"], processes.Failed("died"), ["coalesced"]])
        self.assertEqual([one["attempt"] for one in runs], [1, 2, 3])
        self.assertEqual(runs[1]["marked"], ["failed: died"])


class Loads(unittest.TestCase):
    def test_totals_are_found_and_errors_mark(self):
        found = short.totals('Running\n\nTOTALS {"requests":7,"errors":{"read":2,"status":0}}\n')
        self.assertEqual(short.marks(found), ["2 read errors of 7 requests"])
        with self.assertRaises(processes.Failed):
            short.totals("unable to connect")

    def test_events_that_wait_for_one_another_are_late(self):
        report = {"marked": ["rate"], "rate": {"chunks_per_s": 1}, "coalesced": {"share": 0},
                  "events": {"body_bytes": 10, "chunks": 1}}
        for p50, marked in ((24_000, ["rate"]), (26_000, ["rate", "late"])):
            report["latency_us"] = {"relay": {"p50": p50, "p99": p50}}
            with mock.patch.object(tool, "load", return_value=(report, [])):
                done = tool.pace(SimpleNamespace(pid=None), 1000, 50, 1)
            self.assertEqual(done["marked"], marked)

    def test_cpu_time_of_descendants_counts(self):
        before, deadline = stage.cpu_s(os.getpid()), time.monotonic() + DEADLINE_S
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            while stage.cpu_s(os.getpid()) - before < 0.2:
                self.assertLess(time.monotonic(), deadline)
            self.assertIn(busy.pid, stage.family(os.getpid()))
        finally:
            busy.kill()
            busy.wait()


class Replies(unittest.TestCase):
    ERROR = b'data: {"error":{"message":"x"}}\n\n'

    def test_dechunking_at_every_byte(self):
        whole = ends.chunk(b"data: a\n\n") + ends.chunk(b"data: b\n\n") + b"0\r\n\r\n"
        for cut in range(len(whole)):
            payload, complete = ends.dechunk(whole[:cut])
            self.assertTrue(b"data: a\n\ndata: b\n\n".startswith(payload))
            self.assertFalse(complete, cut)
        self.assertEqual(ends.dechunk(whole), (b"data: a\n\ndata: b\n\n", True))

    def test_verdicts(self):
        begun = ends.HEAD + ends.chunk(ends.EVENT)
        told = begun + ends.chunk(self.ERROR)
        plain = b"HTTP/1.1 200 OK\r\n\r\n" + ends.EVENT
        for received, end, verdict in (
                (begun, "closed", "abort"), (begun, "reset", "abort (reset)"),
                (begun + b"0\r\n\r\n", None, "clean end"), (begun + b"0\r\n", "closed", "abort"),
                (told, "closed", "error event, then abort"),
                (told + b"0\r\n\r\n", None, "error event, then clean end"),
                (told, None, "error event, then nothing"), (begun, None, ends.NEVER),
                (plain, "closed", "clean end"), (plain, "reset", "abort (reset)")):
            self.assertEqual(ends.Reply(received, end).verdict(), verdict, received)

    def test_requests_are_whole_with_their_body(self):
        for cut in range(len(ends.REQUEST)):
            self.assertFalse(ends.whole_request(ends.REQUEST[:cut]))
        self.assertTrue(ends.whole_request(ends.REQUEST))
        chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n"
        self.assertFalse(ends.whole_request(chunked))
        self.assertTrue(ends.whole_request(chunked + b"0\r\n\r\n"))


class Liar:
    """A gateway that tells nobody anything: it keeps the upstream, and ends every answer well."""

    def __init__(self, upstream):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.upstream, self.kept = upstream, []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        client, _ = self.listener.accept()
        server = socket.create_connection(("127.0.0.1", self.upstream))
        self.kept += [client, server]
        server.sendall(client.recv(65536))
        try:
            while data := server.recv(65536):
                client.sendall(data)
        except OSError:
            pass
        try:
            client.sendall(b"0\r\n\r\n")
        except OSError:
            pass

    def close(self):
        for one in [*self.kept, self.listener]:
            one.close()


class Streams(unittest.TestCase):
    def test_ends_without_a_gateway(self):
        with tempfile.TemporaryDirectory() as folder:
            left = ends.leave("direct", Path(folder), 3)["figures"]
            self.assertEqual(left["told"], {"FIN": 3})
            self.assertLess(left["ms"], 1000)
            self.assertEqual(ends.die("direct", Path(folder), "fin", 2)["figures"]["seen"], {"abort": 2})
            self.assertEqual(ends.die("direct", Path(folder), "rst", 1)["figures"]["seen"],
                             {"abort (reset)": 1})

    def test_a_silent_truncation_and_a_lost_cancel_are_found(self):
        with ends.Upstream() as upstream, mock.patch.object(ends, "WAIT_S", 2):
            liar = Liar(upstream.port)
            verdict, seen, _ = ends.die_once(SimpleNamespace(port=liar.port), upstream, "fin")
            self.assertEqual(verdict, "clean end")
            self.assertLess(seen, DEADLINE_S)
            liar.close()
            liar = Liar(upstream.port)
            self.assertEqual(ends.leave_once(SimpleNamespace(port=liar.port), upstream), (None, ends.NEVER))
            liar.close()

    def test_an_upstream_that_gets_nothing_says_so(self):
        with ends.Upstream() as upstream, mock.patch.object(ends, "WAIT_S", 0.1):
            socket.create_connection(("127.0.0.1", upstream.port)).close()
            with self.assertRaises(processes.Failed):
                upstream.request()


class Running(unittest.TestCase):
    def until_gone(self, pid):
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            try:
                if stage.stat(pid)[0] == "Z":
                    return
            except OSError:
                return
            time.sleep(0.01)
        self.fail(f"{pid} still runs")

    def test_all_are_ended_with_their_children_whatever_happens(self):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "log")
            with self.assertRaises(RuntimeError), processes.Processes() as crew:
                # A shell that dies of SIGTERM and leaves its child behind.
                parent = crew.start(["sh", "-c", "sleep 600 & echo $!; wait"], log)
                deadline = time.monotonic() + DEADLINE_S
                while not log.read_text().strip():
                    self.assertLess(time.monotonic(), deadline)
                raise RuntimeError
            self.assertIsNotNone(parent.poll())
            self.until_gone(int(log.read_text()))

    def test_a_terminated_script_leaves_nothing(self):
        script = ("import sys, time; sys.path.insert(0, sys.argv[1])\n"
                  "import processes\n"
                  "processes.end_on_signals()\n"
                  "with processes.Processes() as crew:\n"
                  "    print(crew.start(['sleep', '600'], '/dev/null').pid, flush=True)\n"
                  "    time.sleep(600)\n")
        child = subprocess.Popen([sys.executable, "-B", "-c", script, str(PEERS)],
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        with child:
            pid = int(child.stdout.readline())
            child.send_signal(signal.SIGTERM)
        self.until_gone(pid)

    def test_who_ends_at_once_is_no_server(self):
        with tempfile.TemporaryDirectory() as folder, processes.Processes() as crew:
            log = Path(folder, "log")
            process = crew.start(["sh", "-c", "echo no such port; exit 3"], log)
            with self.assertRaisesRegex(processes.Failed, "status 3: no such port"):
                processes.wait_for(processes.free_ports(1)[0], process, log)

    def test_no_port_is_given_twice(self):
        found = [port for _ in range(20) for port in processes.free_ports(2)]
        self.assertEqual(len(set(found)), 40)


if __name__ == "__main__":
    unittest.main()
