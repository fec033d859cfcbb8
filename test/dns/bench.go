package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/netctl/netctl/test/figures"
)

// bench measures both servers, which answer for the same services, in turns, ours
// first:
//
//	figure NAME VALUE UNIT
//	ratio NAME VALUE ours=... theirs=... unit=...
//
// Processor time is that of the server's process, from /proc. Latencies are of one
// question at a time.
func bench(ctx context.Context, out io.Writer) error {
	services := flag.Int("services", 10_000, "services of the cluster")
	rounds := flag.Int("rounds", 5, "pairs of runs of each kind")
	length := flag.Duration("run", 2*time.Second, "length of a run")
	netctl := flag.String("netctl", "bin/netctl", "the program to measure")
	flag.Parse()
	dir, err := os.MkdirTemp("", "bench-dns-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	core, err := buildCoreDNS(ctx, dir)
	if err != nil {
		return err
	}
	ours, theirs, stop, err := startBoth(ctx, dir, *netctl, core, *services)
	if err != nil {
		return err
	}
	defer stop()
	b := bencher{out: out, ours: ours, theirs: theirs, rounds: *rounds, length: *length, services: *services}
	return b.run(ctx)
}

// startBoth starts both servers for a cluster of so many services.
func startBoth(ctx context.Context, dir, netctl, core string, services int) (ours, theirs *process, stop func(), err error) {
	var ends []func()
	stop = func() {
		for _, end := range slices.Backward(ends) {
			end()
		}
	}
	defer func() {
		if err != nil {
			stop()
		}
	}()
	manifests := filepath.Join(dir, "cluster")
	if err = writeCluster(manifests, services); err != nil {
		return nil, nil, nil, err
	}
	objects, err := readObjects(manifests)
	if err != nil {
		return nil, nil, nil, err
	}
	apiURL, end, err := serveAPI(ctx, objects)
	if err != nil {
		return nil, nil, nil, err
	}
	ends = append(ends, end)
	outside, end, err := serveOutside()
	if err != nil {
		return nil, nil, nil, err
	}
	ends = append(ends, end)
	if theirs, err = startCoreDNS(ctx, core, dir, apiURL, outside); err != nil {
		return nil, nil, nil, err
	}
	ends = append(ends, theirs.end)
	options := filepath.Join(dir, "dns.yaml")
	if err = os.WriteFile(options, []byte("upstreams: ["+outside+"]\n"), 0o600); err != nil {
		return nil, nil, nil, err
	}
	addr, err := freePort(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	ours, err = startServer(ctx, addr, "netctl", netctl, "dns", "--cluster-dir", manifests, "--listen", addr.String(), "--options", options)
	if err != nil {
		return nil, nil, nil, err
	}
	ends = append(ends, ours.end)
	return ours, theirs, stop, nil
}

// writeCluster writes manifests of services in a hundred namespaces.
func writeCluster(dir string, services int) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	docs := []string{
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: kube-system}\n",
		"apiVersion: v1\nkind: Service\nmetadata: {name: kube-dns, namespace: kube-system}\n" +
			"spec: {type: ClusterIP, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{name: dns, port: 53, protocol: UDP}]}\n",
	}
	for i := range min(services, namespaces) {
		docs = append(docs, fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: ns-%d}\n", i))
	}
	for i := range services {
		ip := netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)})
		docs = append(docs, fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: svc-%d, namespace: ns-%d}\n"+
			"spec: {type: ClusterIP, clusterIP: %s, clusterIPs: [%s], ports: [{name: http, port: 80, protocol: TCP}]}\n", i, i%namespaces, ip, ip))
	}
	return os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte(strings.Join(docs, "---\n")), 0o600)
}

const namespaces = 100

// bencher is one run of everything.
type bencher struct {
	out          io.Writer
	ours, theirs *process
	rounds       int
	length       time.Duration
	services     int
}

// result is what a run says.
type result struct {
	perSecond float64
	cpu       float64 // microseconds of the server for a question
	p50, p99  float64 // microseconds
}

func (b *bencher) run(ctx context.Context) error {
	for _, kind := range []struct {
		name  string
		names func(i int) (name string, qtype uint16)
	}{
		{"cluster-names", func(i int) (string, uint16) { return b.service(i), 1 }},
		{"cluster-mixed", func(i int) (string, uint16) {
			switch i % 5 { // as a resolver asks: addresses of both families, and names on a search path
			case 0:
				return b.service(i), 28
			case 1:
				return "missing-" + b.service(i), 1
			}
			return b.service(i), 1
		}},
		{"outside-cached", func(int) (string, uint16) { return "ext.interwebs.test.", 1 }},
	} {
		if err := b.kind(ctx, kind.name, kind.names); err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
	}
	if err := b.pairs(); err != nil {
		return fmt.Errorf("pairs: %w", err)
	}
	for name, p := range map[string]*process{"ours": b.ours, "coredns": b.theirs} {
		kib, err := procField(p.cmd.Process.Pid, "VmHWM")
		if err != nil {
			return err
		}
		b.figure("dns-memory-peak-"+name, float64(kib)/1024, "MiB")
	}
	return nil
}

// pairs asks A and AAAA for many names on one socket, where a lost answer costs a
// client five seconds.
func (b *bencher) pairs() error {
	const count, window = 100_000, 512
	for name, p := range map[string]*process{"ours": b.ours, "coredns": b.theirs} {
		l, err := newLoad(p.addr, b.pair)
		if err != nil {
			return err
		}
		slowest, lost, err := l.pairs(count, window)
		l.close()
		if err != nil {
			return err
		}
		b.figure("dns-100000-pairs-slowest-"+name, slowest.Seconds()*1e3, "ms")
		b.figure("dns-100000-pairs-lost-"+name, float64(lost), "answers")
	}
	return nil
}

// pair is one of the two questions for a name.
func (b *bencher) pair(i int) (string, uint16) { return b.service(i / 2), [...]uint16{1, 28}[i%2] }

func (b *bencher) service(i int) string {
	n := i * 7919 % b.services
	return "svc-" + strconv.Itoa(n) + ".ns-" + strconv.Itoa(n%namespaces) + ".svc.cluster.local."
}

func (b *bencher) figure(name string, value float64, unit string) {
	fmt.Fprintf(b.out, "figure %s %.4g %s\n", name, value, unit)
}

// kind measures one kind of question, in turns.
func (b *bencher) kind(ctx context.Context, name string, names func(i int) (string, uint16)) error {
	var a, t []result
	for round := range b.rounds + 1 {
		for _, p := range []*process{b.ours, b.theirs} {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r, err := b.measure(p, names)
			if err != nil {
				return err
			}
			switch {
			case round == 0: // it warms caches
			case p == b.ours:
				a = append(a, r)
			default:
				t = append(t, r)
			}
		}
	}
	for _, m := range []struct {
		name, unit string
		of         func(result) float64
	}{
		{"questions", "1/s", func(r result) float64 { return r.perSecond }},
		{"cpu", "us/question", func(r result) float64 { return r.cpu }},
		{"p50", "us", func(r result) float64 { return r.p50 }},
		{"p99", "us", func(r result) float64 { return r.p99 }},
	} {
		var x, y, ratios []float64
		for i := range a {
			x, y = append(x, m.of(a[i])), append(y, m.of(t[i]))
			ratios = append(ratios, m.of(a[i])/m.of(t[i]))
		}
		fmt.Fprintf(b.out, "ratio dns-%s-%s %.3f ours=%.4g theirs=%.4g unit=%s\n", name, m.name, figures.Quantile(ratios, 0.5), figures.Quantile(x, 0.5), figures.Quantile(y, 0.5), m.unit)
	}
	return nil
}

// measure asks one server, many questions at a time and then one at a time.
func (b *bencher) measure(p *process, names func(i int) (string, uint16)) (r result, err error) {
	l, err := newLoad(p.addr, names)
	if err != nil {
		return r, err
	}
	defer l.close()
	before, err := cpuTime(p.cmd.Process.Pid)
	if err != nil {
		return r, err
	}
	answers, took, err := l.flood(b.length)
	if err != nil {
		return r, err
	}
	after, err := cpuTime(p.cmd.Process.Pid)
	if err != nil {
		return r, err
	}
	r.perSecond = float64(answers) / took.Seconds()
	r.cpu = float64((after - before).Microseconds()) / float64(answers)
	waits, err := l.singly(b.length / 2)
	if err != nil {
		return r, err
	}
	r.p50, r.p99 = float64(figures.Quantile(waits, 0.5))/1e3, float64(figures.Quantile(waits, 0.99))/1e3
	return r, nil
}

// procField reads a number of /proc/PID/status.
func procField(pid int, field string) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == field+":" {
			return strconv.Atoi(f[1])
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no %s", pid, field)
}

// cpuTime reads how much processor time a process has used.
func cpuTime(pid int) (time.Duration, error) {
	const tick = 10 * time.Millisecond // USER_HZ is 100 everywhere
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 13 {
		return 0, errors.New("/proc/PID/stat is not what it was")
	}
	var sum time.Duration
	for _, s := range f[11:13] {
		n, err := strconv.Atoi(s)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}
