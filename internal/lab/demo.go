package lab

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

//go:embed demo.yaml
var demoManifests []byte

// ErrDemo is returned when a check of the demo fails; the output says which.
var ErrDemo = errors.New("demo failed")

// Demo brings a lab up, shows with one line per check that it works, and takes
// it down again, whatever happens.
func Demo(ctx context.Context, cfg Config, out io.Writer) (err error) {
	l, err := New(cfg, Options{Out: io.Discard})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(), l.Close()) }()
	found, err := cluster.ParseManifests(demoManifests, "demo.yaml")
	if err != nil {
		return err
	}
	start := time.Now()
	if err := l.Up(ctx); err != nil {
		return err
	}
	if err := l.Apply(ctx, found); err != nil {
		return err
	}
	d := &demo{lab: l, out: out}
	if d.objects, err = l.read(); err != nil {
		return err
	}
	d.say("lab %q: %d nodes, %d pods, %s, up in %s", cfg.Name, cfg.Nodes, len(d.objects.pods), cfg.Families, time.Since(start).Round(time.Millisecond))
	d.table()
	for _, story := range []func(context.Context){
		d.podsReachPods, d.containersShareLocalhost, d.nodesReachPods, d.services, d.names, d.affinityAndReject,
		d.outside, d.addressesAndRoutes, d.capture,
	} {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		story(ctx)
	}
	if d.failed > 0 {
		d.say("demo: %d of %d checks FAILED", d.failed, d.failed+d.passed)
		return fmt.Errorf("%w: %d checks", ErrDemo, d.failed)
	}
	d.say("demo: %d checks passed", d.passed)
	return nil
}

// demo is a demo under way.
type demo struct {
	lab            *Lab
	out            io.Writer
	objects        *objects
	passed, failed int
}

func (d *demo) say(format string, args ...any) { _, _ = fmt.Fprintf(d.out, format+"\n", args...) }

// check prints one line about one check: what was seen, or what was wrong.
func (d *demo) check(what, seen string, err error) {
	if err != nil {
		d.failed++
		d.say("FAIL  %s: %v", what, err)
		return
	}
	d.passed++
	d.say("ok    %s: %s", what, seen)
}

func (d *demo) table() {
	d.say("%-28s %-40s %s", "POD", "ADDRESS", "NODE")
	for _, p := range d.objects.pods {
		d.say("%-28s %-40s %s", p.Name.Name, addresses(&p.Pod), p.Node)
	}
}

func (d *demo) replicas() []*cluster.Pod {
	return d.objects.owned(&cluster.Deployment{Name: model.Name{Namespace: "default", Name: "nginx"}})
}

// fetch asks a server from inside a pod or node and returns its introduction.
func (d *demo) fetch(from, url string) (Reply, error) {
	text, err := d.lab.withOutput(from, "netctl", "lab", "fetch", "--json", url)
	if err != nil {
		return Reply{}, err
	}
	var r Reply
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return Reply{}, fmt.Errorf("answer %q: %w", text, err)
	}
	return r, nil
}

func hostPort(a netip.Addr, port string) string { return net.JoinHostPort(a.String(), port) }

func clientAddr(r Reply) netip.Addr {
	ap, err := netip.ParseAddrPort(r.Client)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// podsReachPods: every replica reaches every other one by its own address, and
// the server sees the client pod's own address.
func (d *demo) podsReachPods(context.Context) {
	for _, from := range d.replicas() {
		for _, to := range d.replicas() {
			if from == to {
				continue
			}
			for i, a := range to.Addresses {
				r, err := d.fetch(from.Name.Name, "http://"+hostPort(a, "80")+"/")
				if err == nil && r.Hostname != to.Name.Name {
					err = fmt.Errorf("%s answered instead", r.Hostname)
				}
				if err == nil && clientAddr(r) != from.Addresses[i] {
					err = fmt.Errorf("the server saw %s, not %s: somebody translated", r.Client, from.Addresses[i])
				}
				d.check(fmt.Sprintf("pod on %s -> pod on %s", from.Node, to.Node),
					fmt.Sprintf("%s answered at %s, it saw %s (no NAT)", r.Hostname, a, clientAddr(r)), err)
			}
		}
	}
}

func (d *demo) containersShareLocalhost(context.Context) {
	for _, c := range []struct{ container, port string }{{"web", "8081"}, {"sidecar", "8080"}} {
		var out strings.Builder
		cmd, err := d.lab.Exec("two", c.container, []string{"netctl", "lab", "fetch", "http://localhost:" + c.port}, func(x *exec.Cmd) {
			x.Stdout, x.Stderr = &out, &out
		})
		if err == nil {
			err = cmd.Wait()
		}
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out.String())
		}
		d.check("container "+c.container+" -> localhost:"+c.port, strings.TrimSpace(out.String()), err)
	}
}

func (d *demo) nodesReachPods(context.Context) {
	for _, node := range d.lab.NodeNames() {
		for _, p := range d.replicas() {
			for _, a := range p.Addresses {
				r, err := d.fetch(node, "http://"+hostPort(a, "80"))
				if err == nil && !slices.Contains(d.lab.hostIPs(node), clientAddr(r).String()) {
					err = fmt.Errorf("the pod saw %s, not the node's own address", r.Client)
				}
				d.check(node+" -> pod on "+p.Node, fmt.Sprintf("%s answered, it saw the node as %s", r.Hostname, clientAddr(r)), err)
			}
		}
	}
	nodes := d.lab.NodeNames()
	last := nodes[len(nodes)-1]
	for _, a := range d.replicas()[0].Addresses {
		text, err := d.lab.withOutput(last, "netctl", "lab", "ping", a.String())
		d.check(last+" pings "+a.String(), strings.TrimSpace(text), err)
	}
}

// spread asks a URL until every replica has answered, or often enough to be
// sure that it never will.
func (d *demo) spread(from, url string) (string, error) {
	const tries = 60 // three replicas all answer within with probability 1-10^-10
	seen := map[string]int{}
	for i := range tries {
		r, err := d.fetch(from, url)
		if err != nil {
			return "", err
		}
		seen[r.Hostname]++
		if len(seen) == len(d.replicas()) {
			return fmt.Sprintf("all %d replicas answered within %d requests", len(seen), i+1), nil
		}
	}
	return "", fmt.Errorf("only %d of %d replicas answered %d requests: %v", len(seen), len(d.replicas()), tries, seen)
}

func (d *demo) services(context.Context) {
	svc := d.objects.service(model.Name{Namespace: "default", Name: "nginx"})
	for _, a := range svc.ClusterIPs {
		for _, from := range []string{"client", "node1"} {
			seen, err := d.spread(from, "http://"+hostPort(a, "80"))
			d.check(from+" -> service "+a.String(), seen, err)
		}
	}
	// A replica that is sent to itself through the service (hairpin).
	self := d.replicas()[0]
	for _, a := range svc.ClusterIPs {
		seen, err := d.spread(self.Name.Name, "http://"+hostPort(a, "80"))
		d.check("replica -> its own service "+a.String(), seen, err)
	}
	echo := d.objects.service(model.Name{Namespace: "default", Name: "echo"})
	for _, a := range echo.ClusterIPs {
		text, err := d.lab.withOutput("client", "netctl", "lab", "send", "udp", hostPort(a, "7"), "hello")
		d.check("client -> UDP service "+a.String(), strings.TrimSpace(text), err)
	}
}

func (d *demo) names(context.Context) {
	for _, name := range []string{"nginx", "nginx.default.svc.cluster.local", "nginx-headless"} {
		seen, err := d.spread("client", "http://"+name)
		d.check("client -> http://"+name, seen, err)
	}
	r, err := d.fetch("client", "http://db-0.db:8080")
	if err == nil && r.Hostname != "db-0" {
		err = fmt.Errorf("%s answered", r.Hostname)
	}
	d.check("client -> http://db-0.db:8080 (pod with hostname and subdomain)", r.Hostname+" answered", err)
	r, err = d.fetch("client", "http://outside.example")
	d.check("client -> http://outside.example (forwarded to the node's resolver)", r.Hostname+" answered", err)
	r, err = d.fetch("client", "http://external")
	d.check("client -> http://external (ExternalName)", r.Hostname+" answered", err)
}

func (d *demo) affinityAndReject(context.Context) {
	sticky := d.objects.service(model.Name{Namespace: "default", Name: "sticky"})
	for _, a := range sticky.ClusterIPs {
		seen, err := d.sticks("client", "http://"+hostPort(a, "80"))
		d.check("session affinity at "+a.String(), seen, err)
	}
	empty := d.objects.service(model.Name{Namespace: "default", Name: "empty"})
	for _, a := range empty.ClusterIPs {
		_, err := d.fetch("client", "http://"+hostPort(a, "80"))
		d.check("service without endpoints "+a.String(), "connection refused", expectRefused(err))
	}
}

// sticks asks a URL again and again and wants one backend to answer.
func (d *demo) sticks(from, url string) (string, error) {
	const tries = 8
	first := ""
	for range tries {
		r, err := d.fetch(from, url)
		if err != nil {
			return "", err
		}
		if first == "" {
			first = r.Hostname
		}
		if r.Hostname != first {
			return "", fmt.Errorf("%s answered after %s", r.Hostname, first)
		}
	}
	return fmt.Sprintf("%d requests, all answered by %s", tries, first), nil
}

// expectRefused turns an error that says "refused" into none, and the rest into
// errors.
func expectRefused(err error) error {
	switch {
	case err == nil:
		return errors.New("somebody answered")
	case strings.Contains(err.Error(), "connection refused"):
		return nil
	default:
		return err
	}
}

func (d *demo) outside(context.Context) {
	for _, a := range d.lab.plan.outside {
		if !d.lab.cfg.Families.has(a) {
			continue
		}
		r, err := d.fetch("client", "http://"+hostPort(a, "80"))
		d.check("client -> outside "+a.String(), fmt.Sprintf("%s answered, it saw the node as %s", r.Hostname, clientAddr(r)), err)
		text, err := d.lab.withOutput("client", "netctl", "lab", "send", "udp", hostPort(a, "7"), "hello")
		d.check("client -> outside over UDP", strings.TrimSpace(text), err)
		text, err = d.lab.withOutput("client", "netctl", "lab", "ping", a.String())
		d.check("client pings outside", strings.TrimSpace(text), err)
		_, err = d.fetch("client", "http://"+hostPort(a, "81"))
		d.check("client -> closed port outside", "connection refused", expectRefused(err))
	}
}

// addressesAndRoutes shows what ip(8) says inside a node and a pod.
func (d *demo) addressesAndRoutes(context.Context) {
	remote := d.replicas()[1]
	for _, target := range []string{"node1", d.replicas()[0].Name.Name} {
		for _, a := range remote.Addresses {
			flag := "-4"
			if a.Is6() {
				flag = "-6"
			}
			want := [][]string{
				{"ip", flag, "-brief", "addr"},
				{"ip", flag, "route"},
				{"ip", flag, "route", "get", a.String()},
			}
			for _, args := range want {
				text, err := d.lab.withOutput(target, args...)
				if err == nil && args[len(args)-2] == "get" && !strings.Contains(text, d.device(target)) {
					err = fmt.Errorf("does not lead to %s: %s", d.device(target), text)
				}
				d.check(fmt.Sprintf("%s: %s", target, strings.Join(args, " ")), "\n        "+strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n        "), err)
			}
		}
	}
}

// device is the interface that leads to pods.
func (d *demo) device(target string) string {
	if d.lab.isHost(target) {
		return "dev netctl0"
	}
	return "dev " + podInterface
}
