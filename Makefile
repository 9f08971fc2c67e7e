# Everything the project can do with itself, by one word each.
# giouring links only without the linker's check of pulled-in symbols; this
# must reach every go command, those of the test driver included.
version := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
date := $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
export GOFLAGS := $(filter-out -ldflags=%,$(shell go env GOFLAGS)) -ldflags=-checklinkname=0
LDFLAGS := -checklinkname=0 -X main.version=$(version)
PREFIX ?= /usr
UNITDIR ?= /usr/lib/systemd/system
MODULESDIR ?= /usr/lib/modules-load.d
GENERATORDIR ?= /usr/lib/systemd/system-generators
RULESDIR ?= /usr/lib/udev/rules.d
SHARE = $(DESTDIR)$(PREFIX)/share
FUZZTIME ?= 20s
SEED ?= $(shell date +%s)
N ?= 20000
CUTS ?= 1
LONGTIME ?= 30m
KILLS ?= 50
UPGRADES ?= 20
BOOTS ?= 3
ROUNDS ?= 3
COUNT ?= 6
SERIES ?= 6.12 7
space := $(subst ,, )
comma := ,

.PHONY: build vm zbdtest driver install files deb demo test unit race fuzz long vm-test systemd-test test-native lint clean sim mutants powercut kills upgrades bench bench-native bench-go growth profile profile-guest

build: # a second -ldflags replaces the first, so it repeats it; without cgo it starts twice as fast
	CGO_ENABLED=0 go build -ldflags='$(LDFLAGS)' -o bin/qzbd ./cmd/qzbd

zbdtest: # the rules of a zoned block device, for drives of one's own
	go test -c -o bin/zbdtest ./tests/zbdtest

vm:
	go build -o bin/vm ./tests/vm/cmd/vm

install: build files

QZBD ?= bin/qzbd
files: # what install installs, of that program
	install -D -m 755 $(QZBD) $(DESTDIR)$(PREFIX)/bin/qzbd
	install -d $(DESTDIR)/etc/qzbd $(DESTDIR)$(UNITDIR)
	sed 's|/usr/bin/qzbd|$(PREFIX)/bin/qzbd|' systemd/qzbd@.service > $(DESTDIR)$(UNITDIR)/qzbd@.service
	install -d $(DESTDIR)$(GENERATORDIR)
	ln -sf $(PREFIX)/bin/qzbd $(DESTDIR)$(GENERATORDIR)/qzbd-generator
	install -D -m 644 -t $(DESTDIR)$(RULESDIR) systemd/90-qzbd.rules
	install -D -m 644 -t $(DESTDIR)$(MODULESDIR) systemd/qzbd.conf
	install -D -m 644 -t $(SHARE)/doc/qzbd README.md ARCHITECTURE.md
	install -D -m 644 -t $(SHARE)/doc/qzbd/examples systemd/example.conf
	SOURCE_DATE_EPOCH=$(date) $(QZBD) man $(SHARE)/man
	gzip -9nf $(SHARE)/man/man1/qzbd*.1 $(SHARE)/man/man5/qzbd.conf.5
	install -d $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	$(QZBD) completion bash > $(SHARE)/bash-completion/completions/qzbd
	$(QZBD) completion zsh > $(SHARE)/zsh/site-functions/_qzbd
	$(QZBD) completion fish > $(SHARE)/fish/vendor_completions.d/qzbd.fish

# The packager, nfpm, is a module of its own: nothing else needs it.
DEB ?= bin/deb
DEBVERSION ?= 0~git$(shell date -u -d @$(date) +%Y%m%d%H%M%S).$(shell git rev-parse --short HEAD)
deb:
	rm -rf $(DEB) && mkdir -p $(DEB)
	CGO_ENABLED=0 go build -trimpath -ldflags='-checklinkname=0 -X main.version=$(DEBVERSION) -s -w' -o $(DEB)/qzbd ./cmd/qzbd
	$(MAKE) --no-print-directory files QZBD=$(DEB)/qzbd DESTDIR=$(DEB)/root PREFIX=/usr
	install -D -m 644 -t $(DEB)/root/usr/share/doc/qzbd systemd/nfpm/copyright
	install -D -m 644 systemd/nfpm/lintian-overrides $(DEB)/root/usr/share/lintian/overrides/qzbd
	printf 'qzbd (%s) unstable; urgency=medium\n\n  * As in the repository.\n\n -- The qzbd authors <qzbd@users.noreply.github.com>  %s\n' '$(DEBVERSION)' "$$(date -u -R -d @$(date))" | gzip -9n > $(DEB)/root/usr/share/doc/qzbd/changelog.gz
	GOFLAGS= go build -modfile=systemd/nfpm/go.mod -o bin/nfpm github.com/goreleaser/nfpm/v2/cmd/nfpm
	DEB=$(DEB) VERSION='$(DEBVERSION)' SOURCE_DATE_EPOCH=$(date) bin/nfpm package -f systemd/nfpm/nfpm.yaml -p deb -t $(DEB)/

demo: build vm
	go run ./tests/demo

# Not by "go run", which has a last word of its own.
test: driver # all stages; "bin/all -help" lists them
	bin/all

unit race lint: driver
	bin/all -only $@

vm-test: driver # all that needs a kernel, in every way
	bin/all -thorough -only deps,build,kernel-6.12,kernel-7,copies-7,machine

systemd-test: driver # qzbd as a service of whole systems
	bin/all -only deps,build,systemd-6.12,systemd-7

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

upgrades: driver # of servers, on both kernels, one after the other
	bin/all -only deps,build,kernels,$(subst $(space),$(comma),$(SERIES:%=upgrades-%)) -upgrades $(UPGRADES) -seed $(SEED)

sim: driver # from a seed that nobody has seen
	bin/all -only sim -seed $(SEED) -cuts $(N)

mutants:
	go test -count=1 -timeout=3h -tags=mutants -v ./tests/mutants

powercut: build vm
	go test -count=1 -timeout=12h -tags=machine -v -run='PowerCutsUnder$(KIND)' ./tests/powercut -powercuts=$(CUTS) $(if $(filter command line,$(origin SEED)),-seed=$(SEED))

bench: build # how fast it is, in a machine whose clock counts instructions
	go run ./tests/bench -boots=$(BOOTS) -cells='$(value CELLS)'

NATIVEDIR ?= /dev/shm
bench-native: build # the engine beside QEMU's; nothing else should compute meanwhile
	go build -o bin/benchnative ./tests/benchnative
	bin/benchnative -rounds $(ROUNDS) -dir $(NATIVEDIR)

BENCHDIRS := ./uring ./zns ./qcow2 ./ublk ./tests/engine
bench-go: # for benchstat
	@go test -run='^$$' -bench=. -benchmem -count=$(COUNT) $(BENCHDIRS)

growth: # how cost grows with zones
	go run ./tests/growth

# Images on a tmpfs: no disk is in the way.
PROFILEDIR ?= /dev/shm
profile: build
	bin=$(CURDIR)/bin sh tests/engine/profile.sh $(PROFILEDIR)

profile-guest: build # where the instructions go that make bench counts
	go run ./tests/bench -profile -cells='$(or $(value CELLS),^4k write QD1$$)'

clean:
	rm -rf bin
