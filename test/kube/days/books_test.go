package days_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/agent/record"
)

// records reads the agent's records of a node with this root.
func records(root string) ([]record.Record, error) {
	files, err := filepath.Glob(filepath.Join(root, "run/netctl/ports/*.json"))
	if err != nil {
		return nil, err
	}
	var out []record.Record
	for _, f := range files {
		data, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted meanwhile
		}
		var r record.Record
		if err := errors.Join(err, json.Unmarshal(data, &r)); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// balanced waits until everybody tells the same story: each node's books balance,
// no address is in use twice, blocks and peers are those of the nodes that exist.
func (c *cluster) balanced(t *testing.T) {
	t.Helper()
	c.await(t, "books that balance", 2*time.Minute, func() error {
		all, err := c.pods("-A")
		if err != nil {
			return err
		}
		nodes, err := c.nodes()
		if err != nil {
			return err
		}
		errs := []error{unique(all), c.blocks()}
		for _, n := range nodes {
			if err := c.audit(n, all, nodes); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", n, err))
			}
		}
		return errors.Join(errs...)
	})
}

// unique: no two pods have the same address.
func unique(all []object) error {
	owner := map[string]string{}
	for _, p := range all {
		if p.Spec.HostNetwork || p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed" {
			continue
		}
		for _, a := range p.Status.PodIPs {
			if o, ok := owner[a.IP]; ok {
				return fmt.Errorf("pods %s and %s both have %s", o, p.Metadata.Name, a.IP)
			}
			owner[a.IP] = p.Metadata.Name
		}
	}
	return nil
}

// blocks: none overlaps another. One of a node that is gone stays for the grace of
// ipam.Claimer, and nobody may route to it: see audit of peers.
func (c *cluster) blocks() error {
	out, err := c.try("get", "blocks", "-o", `jsonpath={range .items[*]}{.spec.cidr} {.spec.node}{"\n"}{end}`)
	if err != nil {
		return err
	}
	var seen []netip.Prefix
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) != 2 {
			return fmt.Errorf("block %q", line)
		}
		cidr, err := netip.ParsePrefix(f[0])
		if err != nil {
			return err
		}
		if slices.ContainsFunc(seen, cidr.Overlaps) {
			return fmt.Errorf("block %s overlaps another one", cidr)
		}
		seen = append(seen, cidr)
	}
	if c.podSubnet != "" && len(seen) > 0 {
		return fmt.Errorf("blocks %v are claimed in a cluster whose nodes have podCIDRs", seen)
	}
	return nil
}

// audit compares a node's pods by the API server's word with its agent's books
// and what is in its kernel.
func (c *cluster) audit(node string, all []object, nodes []string) error {
	root, err := c.root(node)
	if err != nil {
		return err
	}
	recs, err := records(root)
	if err != nil {
		return err
	}
	status, err := c.status(node)
	if err != nil {
		return err
	}
	var errs []error
	note := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	byUID := map[string]record.Record{}
	for _, r := range recs {
		if other, ok := byUID[r.UID]; ok {
			note("pod %s has two records: %s, %s", r.Name(), other.ContainerID, r.ContainerID)
		}
		byUID[r.UID] = r
	}
	for _, p := range all {
		if p.Spec.NodeName != node || p.Spec.HostNetwork {
			continue
		}
		r, ok := byUID[p.Metadata.UID]
		delete(byUID, p.Metadata.UID)
		switch {
		case !p.ready():
			note("pod %s is not ready", p.Metadata.Name)
		case !ok || !r.Ready:
			note("pod %s has no record", p.Metadata.Name)
		case r.Addresses[0].String() != p.ip():
			note("pod %s has %s by the API and %s by its record", p.Metadata.Name, p.ip(), r.Addresses[0])
		default:
			if err := device(root, &r); err != nil {
				note("pod %s: %w", p.Metadata.Name, err)
			}
		}
	}
	for _, r := range byUID {
		note("record of %s, which is no pod", r.Name())
	}
	namespaces, err := filepath.Glob(filepath.Join(root, "run/netns/cni-*"))
	if err != nil || len(namespaces) != len(recs) {
		note("%d network namespaces for %d pods (%v)", len(namespaces), len(recs), err)
	}
	ports := 0
	for _, p := range status.Ports {
		if p.Kind == "pod" {
			ports++
		}
	}
	if ports != len(recs) {
		note("%d pod ports for %d records", ports, len(recs))
	}
	if used := status.Pool[0].Used; used != uint64(len(recs)) {
		note("%d addresses in use for %d records", used, len(recs))
	}
	var peers []string
	for _, p := range status.Peers {
		peers = append(peers, p.Node)
	}
	want := slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return n == node })
	slices.Sort(want)
	slices.Sort(peers)
	if !slices.Equal(peers, want) {
		note("peers %v, want %v", peers, want)
	}
	if len(status.Problems) > 0 {
		note("problems: %q", status.Problems)
	}
	return errors.Join(errs...)
}

// device: the pod's eth0 is a TUN with its address.
func device(root string, r *record.Record) error {
	out, err := exec.Command("nsenter", "--net="+filepath.Join(root, strings.TrimPrefix(r.Netns, "/var")), "--", "ip", "-d", "-o", "addr", "show", "dev", r.IfName).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if !strings.Contains(string(out), " "+r.Addresses[0].String()+"/32 ") {
		return fmt.Errorf("%s has not %s: %s", r.IfName, r.Addresses[0], out)
	}
	return nil
}

// tally is what an idle node's agent holds, which must not grow.
type tally struct{ goroutines, files, flows, tuns int }

func (c *cluster) tally(t *testing.T, node string) tally {
	t.Helper()
	s, err := c.status(node)
	if err != nil {
		t.Fatal(err)
	}
	pids := c.agents(node)
	if len(pids) != 1 {
		t.Fatalf("%d agents on %s", len(pids), node)
	}
	out := tally{goroutines: s.Process.Goroutines, files: s.Process.Files, flows: s.Flows}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if text, err := os.ReadFile(l); err == nil && strings.Contains(string(text), "iff:\t") {
			out.tuns++
		}
	}
	return out
}

// reachable: every pod of the fixture is reached from every pod, node and, through
// the Service, also from outside; names are answered; pods reach the outside.
func (c *cluster) reachable(t *testing.T) {
	t.Helper()
	nodes, err := c.nodes()
	if err != nil {
		t.Fatal(err)
	}
	pods := c.readyPods(t, len(nodes), "-n", "days", "-l", "app=web")
	service := c.serviceIP(t)
	dns := c.get(t, "-n", "kube-system", "get", "svc", "kube-dns", "-o", "jsonpath={.spec.clusterIP}")
	addresses := strings.Fields(c.get(t, "get", "nodes", "-o", `jsonpath={.items[*].status.addresses[?(@.type=="InternalIP")].address}`))
	type way struct{ from, netns, url string }
	var ways []way
	targets := []string{"http://" + service + "/hostname"}
	for _, p := range pods {
		targets = append(targets, "http://"+p.ip()+":8080/hostname")
	}
	for _, p := range pods {
		for _, url := range append(targets, "http://"+outside+"/hostname") {
			ways = append(ways, way{"pod on " + p.Spec.NodeName, c.in(t, &p), url})
		}
	}
	for _, n := range nodes {
		for _, url := range targets {
			ways = append(ways, way{n, "/run/netns/kube-" + c.name + "-" + n, url})
		}
	}
	for _, a := range addresses {
		ways = append(ways, way{"outside", "/run/netns/kube-" + c.name + "-outside", "http://" + a + ":30080/hostname"})
		ways = append(ways, way{"pod", c.in(t, &pods[0]), "http://" + a + ":30080/hostname"})
	}
	for _, w := range ways {
		c.await(t, w.from+" to "+w.url, 20*time.Second, func() error { return reach(w.netns, w.url) })
	}
	for _, p := range pods {
		netns := c.record(t, &p).Netns
		for name, want := range map[string]string{"web.days.svc.cluster.local": service, "outside.example": outside} {
			c.await(t, "name "+name+" on "+p.Spec.NodeName, 20*time.Second, func() error {
				got, err := c.on(p.Spec.NodeName, "nsenter", "--net="+netns, "--", "dig", "+short", "+tries=1", "+time=2", "@"+dns, name)
				if err == nil && got != want {
					err = fmt.Errorf("got %q, want %s", got, want)
				}
				return err
			})
		}
	}
}
