#!/usr/bin/env python3
"""What can be tested of `make price` and of the bars without a gateway: verdicts, configurations,
the arithmetic of the rows, and what is left out where something is missing.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import tomllib
import unittest
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / "peers"
sys.path[:0] = [str(HERE), str(PEERS)]

import bars
import benchmark
import cost
import figures
import processes
import publish
import rounds
import shapes
import tool
import works
from bars import Bar
from figures import Derived, Figure
from shapes import Shape
from tests import report, run

BENCHMARKS = {one.name: one for one in (works.COMPARE, cost.PRICE)}
US = Figure("cpu", "CPU, µs")


def judged(bar, values, figure=US, marks=()):
    """The verdict where each contestant has these values, one a round; marked as said."""
    runs = [run("w", n, name, {figure.key: value}, ["rate"] if name in marks else [])
            for name, found in values.items() for n, value in enumerate(found, 1)]
    whole = report(runs, [figure], names=tuple(values))
    row = figures.cells(whole)["w"][figure.key]
    return bars.judge(bar, "title", figure, row)


class Verdicts(unittest.TestCase):
    def test_the_median_counts_in_the_unit_in_which_it_is_written(self):
        kb = Figure("rss", "memory, kB", 1 / 1000, 2)
        for values, text in (([1900, 2000, 9000], "met"), ([2000, 2002, 2001], "missed by 0.1 %"),
                             ([2100], "missed by 5.0 %"), ([5000], "missed by 150 %")):
            found = judged(Bar("price", "w", "rss", 2.0), {"tidegate": values}, kb)
            self.assertEqual((found.text, found.allowed), (text, 2.0))

    def test_a_multiple_is_of_the_better_one(self):
        bar = Bar("compare", "w", "cpu", 1.1, ("nginx", "haproxy"))
        others = {"nginx": [20.0, 21.0, 22.0], "haproxy": [10.0, 90.0, 10.0]}
        found = judged(bar, {"tidegate": [11.0], **others})
        self.assertEqual((found.text, round(found.allowed, 6)), ("met", 11.0))
        self.assertEqual(judged(bar, {"tidegate": [13.2], **others}).text, "missed by 20 %")
        self.assertEqual(bars.bar_text(found), "≤ 1.1 × the better of nginx and haproxy = 11.0")

    def test_without_a_fair_value_on_each_side_there_is_no_verdict(self):
        bar = Bar("compare", "w", "cpu", 1.1, ("nginx",))
        for values, marks, reason in (
                ({"tidegate": [1.0]}, (), "nginx took no part"),
                ({"nginx": [1.0]}, (), "tidegate took no part"),
                ({"tidegate": [1.0], "nginx": [1.0]}, ("nginx",), "nginx: rate"),
                ({"tidegate": [1.0], "nginx": [1.0]}, ("tidegate",), "tidegate: rate"),
                ({"tidegate": [None], "nginx": [1.0]}, (), "tidegate: no value"),
                ({"tidegate": [-9.0], "nginx": [-3.0]}, (), "nginx: −3.0 is nothing to compare")):
            text = judged(bar, values, marks=marks).text
            self.assertTrue(text.startswith(f"not shown: {reason}"), text)

    def test_every_bar_is_on_a_figure_that_its_benchmark_measures(self):
        self.assertEqual(len(set(bars.BARS)), len(bars.BARS))
        for bar in bars.BARS:
            one = BENCHMARKS[bar.benchmark]
            work = next(work for work in one.works(one.full) if work.name == bar.work)
            self.assertIn(bar.figure, [figure.key for figure in work.figures], bar)
            self.assertTrue(all(work.takes(name) for name in (bars.SUBJECT, *bar.of)), bar)

    def priced(self, values, marked=()):
        work = next(one for one in cost.works(cost.Extent()) if one.name == "idle-h1")
        runs = [run("idle-h1", 1, name, {"rss": value}, marked if name == "haproxy" else ())
                for name, value in values.items()]
        return {**report(runs, names=cost.PRICE.names), "benchmark": "price",
                "works": [work.described()]}

    def test_the_table_has_bar_median_range_verdict_and_others(self):
        lines = bars.table(self.priced({"tidegate": 1900, "haproxy": 1500, "raw-relay": 100}),
                           others=True).splitlines()
        self.assertEqual(lines[2], "| 9,500 idle streams, HTTP/1.1 on both sides: user memory per "
                         "stream, kB | ≤ 2 | 1.90 | 1.90 | met | haproxy 1.50, raw-relay 0.10 |")
        self.assertIn("| ≤ 1 × haproxy = 1.50 | 1.90 | 1.90 | **missed by 27 %** |", lines[3])
        self.assertIn("| not shown: not measured |", lines[4])

    def test_the_table_says_why_a_run_is_marked(self):
        text = bars.table(self.priced({"tidegate": 1900, "haproxy": 1500}, ["failures"]), others=True)
        self.assertIn("not shown: haproxy: failures", text)
        self.assertIn("failures (not every stream could be opened): haproxy in 1 of 1 rounds", text)

    def test_verdicts_are_kept_in_the_report(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "report.json")
            rounds.Recorder(self.priced({"tidegate": 2500}), path).save()
            first, second, *_ = json.loads(path.read_text())["bars"]
        self.assertEqual((first["verdict"], first["allowed"]), ("missed by 25 %", 2.0))
        self.assertEqual(second["verdict"], "not shown: haproxy took no part")


class Shapes(unittest.TestCase):
    def config(self, shape, contestant="tidegate"):
        given = subprocess.run([str(processes.PEER), "config", contestant, "1234", "5678"],
                               stdout=subprocess.PIPE, text=True, check=True).stdout
        return tomllib.loads(shape.config(given, Path("/d"))), tomllib.loads(given)

    def test_configurations_differ_from_the_comparisons_in_protocols_only(self):
        changed, given = self.config(cost.TLS_CLIENT)
        upstream = changed["upstream"][0]
        self.assertEqual(upstream.pop("http"), "2")
        self.assertEqual(upstream.pop("ca"), "/d/ca.pem")
        self.assertEqual(upstream["urls"], ["https://127.0.0.1:5678"])
        upstream["urls"] = ["http://127.0.0.1:5678"]
        self.assertEqual(changed["server"].pop("tls"), {"cert": "/d/cert.pem", "key": "/d/key.pem"})
        changed["limits"]["streams"] = given["limits"]["streams"]
        self.assertEqual(changed, given)

    def test_limits_come_on_top_of_the_comparisons_configuration(self):
        limited, plain = (self.config(cost.H2, name)[0] for name in (bars.LIMITED, bars.SUBJECT))
        self.assertTrue({"tenant", "route"} <= limited.keys())
        for table, settings in plain.items():
            of_table = limited[table][0] if table == "upstream" else limited[table]
            own = settings[0] if table == "upstream" else settings
            self.assertEqual(own, {key: of_table[key] for key in own}, table)

    def test_both_ends_are_told_what_is_spoken(self):
        self.assertEqual(cost.TLS_CLIENT.tool_options(), ("--insecure",))
        self.assertEqual(cost.TLS_CLIENT.scheme, "https")
        self.assertIn("--tls", cost.H2_TLS_UPSTREAM.simulator_options(Path("/d")))
        self.assertEqual(cost.H2_TLS_UPSTREAM.tool_options(), ())
        self.assertNotIn("--tls", cost.H2.simulator_options(Path("/d")))
        options = cost.H2.tool_options()
        self.assertEqual(options[options.index("--http") + 1], "2")
        changed, _ = self.config(cost.H2)
        self.assertGreater(changed["limits"]["streams"], cost.Extent().h2_streams)

    def test_a_template_that_has_changed_is_refused(self):
        for text in ("", "streams = 1\nstreams = 2\n"):
            with self.assertRaises(processes.Failed):
                Shape().config(text, Path("/d"))


def memory_report(streams, marked=(), live=None, at_kb=3000, ends=(0, 0)):
    return {"marked": list(marked),
            "streams": {"opened": streams, "live": streams if live is None else live,
                        "live_max": streams, "completed": ends[0], "aborted": ends[1]},
            "server": {"memory_before": {"rss_kb": 1000}, "memory_at": {"rss_kb": at_kb},
                       "memory_after": {"rss_kb": at_kb},
                       "bytes_per_stream": {"rss": 2000.0, "pss": 2.0, "private": 1.0}}}


class Rows(unittest.TestCase):
    stage = SimpleNamespace(contestant="tidegate", pid=1, upstream_pid=2, tool=())

    def held(self, **told):
        with mock.patch.object(tool, "load", return_value=(memory_report(**told), [])):
            return tool.hold(self.stage, [], 4)

    def test_memory_is_of_streams_that_are_there(self):
        self.assertEqual(self.held(streams=10)["figures"]["total"], 3000 * 1024)
        self.assertEqual(self.held(streams=10)["marked"], [])
        self.assertEqual(self.held(streams=10, live=9)["marked"], ["fewer_live"])
        self.assertEqual(self.held(streams=10, marked=["failures", "coalesced", "rate"])["marked"],
                         ["failures"])

    def after(self, ends, kb=3000):
        told = [(memory_report(50, at_kb=2000), []), (memory_report(100, at_kb=kb, ends=ends), [])]
        with mock.patch.object(tool, "load", side_effect=told):
            return cost.after(self.stage, cost.Extent())

    def test_memory_after_a_crowd_is_relative_to_that_after_a_few(self):
        found = self.after((48, 52))
        self.assertEqual((found["figures"]["kept"], found["marked"]), (1.5, []))
        for ends in ((48, 51), (100, 0), (30, 70)):
            self.assertEqual(self.after(ends)["marked"], ["ends"], ends)

    def parts(self, work, measure):
        """A run of a work of two parts, `measure` finding the figures of each in turn."""
        stages = mock.patch.object(cost, "in_front_of_simulator",
                                   lambda *_: contextlib.nullcontext(self.stage))
        with tempfile.TemporaryDirectory() as folder, stages, measure:
            return work.run("tidegate", Path(folder))

    def test_bodies_are_held_against_streams_without(self):
        told = [{"figures": {"rss": rss}, "marked": marked, "command": [], "detail": {}}
                for rss, marked in ((1000.0, []), (1500.0, ["failures"]))]
        held = mock.patch.object(tool, "hold", side_effect=told)
        found = self.parts(cost.bodies(cost.Extent()), held)
        self.assertEqual(found["figures"], {"without": 1000.0, "with": 1500.0, "added": 500.0})
        self.assertEqual(found["marked"], ["with: failures"])

    def test_both_crowds_have_the_same_rate(self):
        asked = []

        def pace(_, streams, interval_ms, hold_s, __):
            asked.append(streams * 1000 / interval_ms)
            self.assertEqual(hold_s * 1000 % interval_ms, 0, "as many events of each stream")
            return {"figures": {"cpu_total": 10.0 + len(asked)}, "marked": [], "command": [],
                    "detail": {}}

        for extent in (cost.Extent(), cost.QUICK):
            found = self.parts(cost.many(extent), mock.patch.object(tool, "pace", pace))
            self.assertEqual(asked[-2:], [extent.chunks_per_s] * 2)
        self.assertEqual(found["figures"]["growth"], 14 / 13)

    def test_growth_is_over_that_of_the_relay_in_the_same_round(self):
        work = cost.many(cost.Extent())
        runs = [run("many", 1, "tidegate", {"growth": 1.2}), run("many", 1, "raw-relay", {"growth": 0.8})]
        whole = {**report(runs), "benchmark": "price", "works": [work.described()]}
        verdict = [one for one in bars.verdicts(whole) if one.bar.subject == bars.SUBJECT][-1]
        self.assertEqual((verdict.text, verdict.own.median), ("missed by 30 %", 1.2 / 0.8))


class Selection(unittest.TestCase):
    def test_names_are_unique_and_figures_survive_the_report(self):
        for extent in (cost.Extent(), cost.QUICK):
            everything = cost.works(extent)
            self.assertEqual(len({one.name for one in everything}), len(everything))
            for one in everything:
                kept = json.loads(json.dumps(one.described()))["figures"]
                self.assertEqual(tuple(map(Figure.read, kept)), one.figures)
            json.dumps(asdict(extent))

    def test_a_full_run_is_done_in_a_quarter_of_an_hour(self):
        full = list(rounds.plan(cost.works(cost.Extent()), cost.PRICE.names, cost.PRICE.rounds))
        self.assertLess(sum(work.seconds for _, work, _ in full), 15 * 60)

    def test_what_does_not_fit_is_left_out_and_said(self):
        with mock.patch.object(cost, "streams_at_most", return_value=6000):
            wanted, left_out, _ = cost.select(cost.Extent(), [])
        self.assertEqual([one.name for one in wanted], ["idle-h2-h2", "bodies"])
        self.assertEqual(len(left_out), 5)
        with mock.patch.object(shapes.shutil, "which", return_value=None):
            wanted, left_out, _ = cost.select(cost.QUICK, ["idle"])
        self.assertEqual(len(wanted), 3)
        self.assertIn("openssl is not installed", left_out[0])

    def test_only_those_who_are_needed_are_considered(self):
        listed = [{"name": name, "version": "1", "program": "p"} for name in ("tidegate", "gin")]
        told = SimpleNamespace(stdout=json.dumps(listed))
        with mock.patch.object(rounds.subprocess, "run", return_value=told):
            self.assertEqual(rounds.contestants([], ("tidegate",)), [{"name": "tidegate", "version": "1"}])
            self.assertEqual([one["name"] for one in rounds.contestants([])], ["tidegate", "gin", "direct"])
            with self.assertRaises(processes.Failed):
                rounds.contestants(["gin"], ("tidegate",))


class Page(unittest.TestCase):
    def test_a_report_of_another_benchmark_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "report.json")
            for name, schema in (("compare", benchmark.SCHEMA), ("price", benchmark.SCHEMA - 1)):
                path.write_text(json.dumps({"benchmark": name, "schema": schema}))
                with self.assertRaises(processes.Failed):
                    benchmark.read(cost.PRICE, path)
            path.write_text(json.dumps({"benchmark": "price", "schema": benchmark.SCHEMA}))
            self.assertEqual(benchmark.read(cost.PRICE, path)["benchmark"], "price")

    def test_publishing_fills_only_its_own_parts(self):
        whole = {**report([]), "benchmark": "price",
                 "works": [one.described() for one in cost.works(cost.Extent())]}
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder, "page.md")
            before = publish.PAGE.read_text()
            page.write_text(before)
            with mock.patch.multiple(publish, PAGE=page, FOLDER=Path(folder, "figures")):
                publish.publish(whole, cost.PRICE.sections, {})
            after = page.read_text()
            self.assertTrue(Path(folder, "figures", "price.json").exists())
        self.assertEqual(after.partition("<!-- price:setting")[0], before.partition("<!-- price:setting")[0])
        for name in (bars.SUBJECT, bars.LIMITED):
            self.assertEqual(after.count(f"not shown: {name} took no part"),
                             sum((one.benchmark, one.subject) == ("price", name) for one in bars.BARS))

    def test_a_quick_run_says_so(self):
        whole = report([])
        self.assertNotIn("--quick", cost.PRICE.sections({**whole, "benchmark": "price"}, {})["setting"])
        whole["options"]["quick"] = True
        self.assertIn("--quick", cost.PRICE.sections({**whole, "benchmark": "price"}, {})["setting"])


if __name__ == "__main__":
    unittest.main()
