# What people do with Tidegate; `make check` is what CI runs.

CARGO ?= cargo

# Run once with the HTTP/1.1 relay and once with every response left to the HTTP library.
BOTH_WAYS = --test streams --test faults --test pass --test refusals --test life --test plain --test config_effects \
	--test overload --test reload --test admission --test usage

.PHONY: help run test check build many overload clients real-upstream load load-wrk load-oha peers compare price flood bench clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

run: ## the gateway in front of a simulated upstream over HTTPS; prints a curl line to paste
	$(CARGO) run --quiet --bin tidegate -- demo

build: ## the program, as deployed: target/release/tidegate
	$(CARGO) build --release --bin tidegate

test: ## every test
	$(CARGO) test --workspace

check: ## format, lints, tests, documentation
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) test --workspace
	TIDEGATE_TEST_NO_RELAY=1 $(CARGO) test $(BOTH_WAYS)
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --quiet

many: ## 9,000 streams at once through one process, HTTPS and HTTP/2 upstream (release build)
	TIDEGATE_STREAMS=9000 $(CARGO) test --release --test many -- --nocapture

overload: ## stalled readers and large bodies within a memory control group, with limits.memory and without (root, release build)
	$(CARGO) test --release --test oom -- --ignored --nocapture

clients: ## real clients (SDKs for Python and Node, a browser's EventSource, curl) against `tidegate demo`
	tests/clients/run

real-upstream: ## llama.cpp's own server with a tiny random model behind the gateway: streams, cancels, a crowd
	tests/real/run

load: ## 10,000 streams through the gateway, measured (as many as the open-file limit allows)
	load/demo

load-wrk: ## low and high load by wrk: latency, errors, CPU, first events
	load/wrk/run

load-oha: ## the same by oha
	load/oha/run

peers: ## installs the proxies to compare with and shows that each passes streams whole
	$(CARGO) build --release --workspace
	load/peers/peer install
	load/peers/check

compare: ## Tidegate and the peers on the same work, about half an hour; ARGS="--quick --rounds 1" for a look
	$(CARGO) build --release --workspace
	load/compare/run $(ARGS)

price: ## what a stream costs in Tidegate in every shape, each against its bar; some 8 minutes; ARGS as above
	$(CARGO) build --release --workspace
	load/compare/price $(ARGS)

flood: ## running streams under five times the allowed new ones, against the raw relay; ARGS="--seconds 60" for the whole
	$(CARGO) build --release --workspace
	load/compare/flood $(ARGS)

bench: ## what the parts on every chunk's way cost: instructions, compared with benches/baseline.json, and time
	$(CARGO) bench --bench hot

clean: ## remove what was built
	$(CARGO) clean
