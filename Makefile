# The names a person types; what they do is in setup and .ci/. `make` alone lists them.
#
# demo and test are complete on a fresh Debian 12 with make and git, as root: they install what they need first. Without
# root they print a hint, and the script behind them exits 64. make itself ends with 2 whatever code a recipe ended with; who
# looks at the code calls ./setup and .ci/NAME.

.DEFAULT_GOAL := help
.PHONY: help setup demo test kernels hostile bench full-table lint fuzz explore

help:
	@echo 'make setup    install what building and testing needs (runs by itself where needed)'
	@echo 'make demo     build, bring two clusters up in network namespaces, and show them joined'
	@echo 'make test     everything CI runs'
	@echo 'make kernels  the kernel side on Linux 6.1 and 6.12 in QEMU; KERNELS=6.1 for one of them'
	@echo 'make hostile  ten million packets of anything through every program of the kernel; PACKETS=1000000 SEED=7'
	@echo 'make lint     formatting, clippy, and the rules of the repository'
	@echo 'make bench    measure; BENCH=routes, mesh, bgp or datapath for one of them; results in target/bench/'
	@echo 'make full-table  a million BGP prefixes from BIRD through us to BIRD, compared octet by octet'
	@echo 'make explore  run the property tests with new seeds; ROUNDS=100'
	@echo 'make fuzz     run the fuzz targets; RUNS=10000000 FUZZ=target for one of them'

setup:
	@./setup

demo: setup
	@.ci/demo

test: setup
	@.ci/test

kernels: setup
	@.ci/kernels

hostile: setup
	@.ci/hostile

bench: setup
	@.ci/bench $(BENCH)

full-table: setup
	@.ci/full-table

lint:
	@.ci/lint

explore:
	@.ci/explore

fuzz:
	@.ci/fuzz
