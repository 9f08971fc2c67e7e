# Everything the project can do with itself, by one word each.
# giouring links only without the linker's check of pulled-in symbols; this
# must reach every go command, those of the test driver included.
version := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
export GOFLAGS := $(filter-out -ldflags=%,$(shell go env GOFLAGS)) -ldflags=-checklinkname=0
PREFIX ?= /usr
UNITDIR ?= /usr/lib/systemd/system
MODULESDIR ?= /usr/lib/modules-load.d
RULESDIR ?= /usr/lib/udev/rules.d
SHARE = $(DESTDIR)$(PREFIX)/share
FUZZTIME ?= 20s
SEED ?= $(shell date +%s)
N ?= 20000
CUTS ?= 1
LONGTIME ?= 30m
KILLS ?= 50
SERIES ?= 6.12 7
space := $(subst ,, )
comma := ,

.PHONY: build vm zbdtest driver install demo test unit race fuzz long vm-test test-native lint clean sim mutants powercut kills

build: # a second -ldflags replaces the first, so it repeats it
	go build -ldflags='-checklinkname=0 -X main.version=$(version)' -o bin/qzbd ./cmd/qzbd

zbdtest: # the rules of a zoned block device, for drives of one's own
	go test -c -o bin/zbdtest ./tests/zbdtest

vm:
	go build -o bin/vm ./tests/vm/cmd/vm

install: build
	install -D -m 755 bin/qzbd $(DESTDIR)$(PREFIX)/bin/qzbd
	install -d $(DESTDIR)$(UNITDIR)
	sed 's|/usr/bin/qzbd|$(PREFIX)/bin/qzbd|' systemd/qzbd@.service > $(DESTDIR)$(UNITDIR)/qzbd@.service
	install -D -m 644 -t $(DESTDIR)$(RULESDIR) systemd/90-qzbd.rules
	install -d $(DESTDIR)/etc/qzbd
	install -D -m 644 systemd/qzbd.conf $(DESTDIR)$(MODULESDIR)/qzbd.conf
	install -d $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	bin/qzbd completion bash > $(SHARE)/bash-completion/completions/qzbd
	bin/qzbd completion zsh > $(SHARE)/zsh/site-functions/_qzbd
	bin/qzbd completion fish > $(SHARE)/fish/vendor_completions.d/qzbd.fish

demo: build vm
	go run ./tests/demo

# Not by "go run", which has a last word of its own.
test: driver # all stages; "bin/all -help" lists them
	bin/all

unit race lint: driver
	bin/all -only $@

vm-test: driver
	bin/all -only deps,build,kernel-6.12,kernel-7,machine

driver:
	go build -o bin/all ./tests/all

test-native: build vm # on this machine's own kernel, as root
	QZBD_TOOLS=$$(bin/vm tools) go test -count=1 -p 1 -tags kernel -v ./ublk ./tests/kernel ./tests/zbdtest

fuzz: driver
	bin/all -only fuzz -fuzztime $(FUZZTIME)

long: driver # on both kernels, one after the other
	bin/all -only deps,build,kernels,long-6.12,long-7 -longtime $(LONGTIME)

kills: driver # of servers, on both kernels, one after the other
	bin/all -only deps,build,kernels,$(subst $(space),$(comma),$(SERIES:%=kills-%)) -kills $(KILLS) -seed $(SEED)

sim: driver # from a seed that nobody has seen
	bin/all -only sim -seed $(SEED) -cuts $(N)

mutants:
	go test -count=1 -timeout=3h -tags=mutants -v ./tests/mutants

powercut: build vm
	go test -count=1 -timeout=12h -tags=machine -v -run='PowerCutsUnder$(KIND)' ./tests/powercut -powercuts=$(CUTS) $(if $(filter command line,$(origin SEED)),-seed=$(SEED))

clean:
	rm -rf bin
