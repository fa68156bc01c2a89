# What each target needs and does: `make help`.
GO       ?= go
GOFUMPT  := $(GO) tool -modfile=tools/go.mod gofumpt
STATIC   := $(GO) tool -modfile=tools/go.mod staticcheck
LDFLAGS  := -s -w -X dandelion/pkg/config.version=$(shell git describe --always --dirty 2>/dev/null)
DAEMONS  := ./entrance/cmd/run_entrance ./box/cmd/run_box ./publisher/cmd/run_publisher ./cmd/dandelion
PAGE     := web/dist/index.html

.PHONY: help build demo test check page unit e2e chaos crowd soak web deps bench fuzz cross clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

build: web ## the three daemons and the tool, in bin/
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(DAEMONS)

demo: build ## a whole fleet in one process, with a live stream: prints the URL to open
	@bin/dandelion demo

test: deps web check page unit e2e ## everything; installs what the tests need, or says what to install

check: ## formatting, vet, staticcheck, and builds for the machines that boxes are
	@test -z "$$($(GOFUMPT) -l $$(git ls-files '*.go'))" || { echo "gofumpt would change:"; $(GOFUMPT) -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet -tags e2e ./...
	$(STATIC) -tags e2e ./...
	@scripts/cross-build

page: web ## the page's types and its own tests
	@scripts/test-page

unit: ## all packages, with the race detector, each benchmark once
	$(GO) test -race -timeout 15m ./...
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 10m ./...

e2e: deps web ## separate processes with the real encoder, player, Redis and browser
	$(GO) test -tags e2e -count 1 -parallel 3 -timeout 20m -v ./e2e/...

chaos: deps ## ten minutes of faults while 60 viewers watch, as root in network namespaces: prints a table; CHAOS_FOR, CHAOS_SEED, CHAOS_REPORT=file
	CHAOS_FOR=$(or $(CHAOS_FOR),10m) $(GO) test -tags e2e -count 1 -timeout 0 -v -run '^TestChaos$$' ./e2e

crowd: deps ## up to 500 viewers come at once to up to 100 boxes that may send little: prints tables; CROWD_ONLY=a,b,…, CROWD_SHORT=1, CROWD_REPORT=file
	CROWD_ONLY=$(or $(CROWD_ONLY),all) $(GO) test -tags e2e -count 1 -timeout 0 -v -run '^TestCrowd$$' ./e2e

soak: ## ten minutes of 20 streams and 10 boxes that fail and return: nothing may grow (SOAK_FOR)
	SOAK_FOR=$(or $(SOAK_FOR),10m) $(GO) test -run '^TestSoak$$' -count 1 -timeout 0 -v ./pkg/testfleet

web: $(PAGE) ## the page with its player library, where npm is there

$(PAGE): $(shell find web/src web/index.html web/package.json web/package-lock.json web/vite.config.ts 2>/dev/null)
	@scripts/build-page

deps: ## what the tests need, from Debian and npm
	@scripts/test-deps

bench: ## the comparisons of docs/performance.md
	$(GO) test -run '^$$' -bench . -timeout 30m ./...

fuzz: ## every fuzz test for ten seconds
	@scripts/fuzz

clean: ## remove what was built
	rm -rf bin web/node_modules && find web/dist -mindepth 1 ! -name .gitkeep -delete
