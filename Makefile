# What people do with Tidegate; `make check` is what CI runs.

CARGO ?= cargo

.PHONY: help run test check build clients deploy-check clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

run: ## the gateway in front of a simulated upstream over HTTPS; prints a curl line to paste
	$(CARGO) run --release --quiet -- demo

build: ## the program, as deployed: target/release/tidegate
	$(CARGO) build --release --bin tidegate

test: ## every test
	$(CARGO) test --workspace

check: ## format, lints, tests, documentation
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) test --workspace
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet

clients: ## real clients (openai for Python and Node, curl) against `tidegate demo`
	tests/clients/run

clean: ## remove what was built
	$(CARGO) clean
