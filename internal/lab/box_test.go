package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/ipam"
)

// box is a sandbox as a container runtime has it, without containers.
type box struct {
	lab  *Lab
	node string
	name model.Name
	id   string
	conf *libcni.NetworkConfigList
}

// box makes the namespace of a pod; the lab's end takes it down.
func (l *Lab) box(t *testing.T, node, name string) *box {
	t.Helper()
	conf, err := l.conflist(node)
	if err != nil {
		t.Fatal(err)
	}
	b := &box{lab: l, node: node, name: model.Name{Namespace: "default", Name: name}, id: newContainerID(), conf: conf}
	ns, err := l.createNamespace(podPart(b.name))
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *box) rt() *libcni.RuntimeConf { return b.lab.runtimeConf(b.name, "uid-"+b.name.Name, b.id) }

func (b *box) add(ctx context.Context) ([]netip.Addr, error) {
	res, err := b.lab.libcni().AddNetworkList(ctx, b.conf, b.rt())
	if err != nil {
		return nil, err
	}
	r, err := types100.NewResultFromResult(res)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, ip := range r.IPs {
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		out = append(out, a.Unmap())
	}
	if len(out) == 0 {
		return nil, errors.New("a result without addresses")
	}
	return out, nil
}

func (b *box) del(ctx context.Context) error {
	return b.lab.libcni().DelNetworkList(ctx, b.conf, b.rt())
}

func (b *box) check(ctx context.Context) error {
	return b.lab.libcni().CheckNetworkList(ctx, b.conf, b.rt())
}

// netns opens the pod's namespace.
func (b *box) netns(t *testing.T) *kernel.Namespace {
	t.Helper()
	ns, err := b.lab.namespace(podPart(b.name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// code is the CNI error code of an error, 0 for none and 999 for other errors.
func code(err error) uint {
	var e *types.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.Code
	default:
		return types.ErrInternal
	}
}

// books is what a node remembers, from its files.
type books struct {
	records map[string][]netip.Addr // container -> addresses
	leases  map[string][]netip.Addr
}

func (l *Lab) books(t *testing.T, node string) books {
	t.Helper()
	out := books{records: map[string][]netip.Addr{}, leases: map[string][]netip.Addr{}}
	files, err := filepath.Glob(filepath.Join(l.stateDir(node), "ports", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		var r struct {
			ContainerID string
			Addresses   []netip.Addr
		}
		if err := errors.Join(err, json.Unmarshal(data, &r)); err != nil {
			t.Fatal(err)
		}
		out.records[r.ContainerID] = r.Addresses
	}
	// The agent has the pool open: look at a copy.
	dir := filepath.Join(t.TempDir(), strconv.FormatUint(rand.Uint64(), 10))
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(l.stateDir(node), "ipam"))); err != nil {
		t.Fatal(err)
	}
	pool, err := ipam.Open(ipam.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for _, lease := range pool.Leases() {
		out.leases[lease.ContainerID] = lease.Addresses
	}
	return out
}

// checkBooks compares what a node remembers with the pods that there should be
// and with what is in their namespaces.
func (l *Lab) checkBooks(t *testing.T, node string, want map[*box][]netip.Addr) {
	t.Helper()
	// Devices end, and with them their records, a moment after DEL has answered.
	var b books
	eventually(t, 15*time.Second, func() error {
		if b = l.books(t, node); len(b.leases) != len(want) || len(b.records) != len(want) {
			return fmt.Errorf("%d leases and %d records for %d pods", len(b.leases), len(b.records), len(want))
		}
		return nil
	})
	owners := map[netip.Addr]string{}
	for id, addrs := range b.leases {
		for _, a := range addrs {
			if other := owners[a]; other != "" {
				t.Errorf("%s is leased to %s and %s", a, id, other)
			}
			owners[a] = id
		}
		if !slices.Equal(b.records[id], addrs) {
			t.Errorf("container %s: leased %v, recorded %v", id, addrs, b.records[id])
		}
	}
	for pod, addrs := range want {
		if !slices.Equal(b.leases[pod.id], addrs) {
			t.Errorf("%s: leased %v, answered %v", pod.name.Name, b.leases[pod.id], addrs)
		}
		if err := pod.matches(t, addrs); err != nil {
			t.Errorf("%s: %v", pod.name.Name, err)
		}
	}
	ns, err := l.namespace(node)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	links, err := kernel.Interfaces(ns)
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if !slices.Contains([]string{"lo", "eth0", "netctl0"}, link.Name) {
			t.Errorf("interface %s is left on %s", link.Name, node)
		}
	}
}

// matches compares a pod's eth0 with addresses; none means no eth0.
func (b *box) matches(t *testing.T, addrs []netip.Addr) error {
	t.Helper()
	found, err := kernel.Describe(b.netns(t), podInterface)
	if len(addrs) == 0 {
		if !errors.Is(err, kernel.ErrNotFound) {
			return fmt.Errorf("%s is there (%v)", podInterface, err) //nolint:errorlint // mostly there is no error
		}
		return nil
	}
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if !slices.Contains(found.Addresses, netip.PrefixFrom(a, a.BitLen())) {
			return fmt.Errorf("address %s is not on %s, which has %v", a, podInterface, found.Addresses)
		}
	}
	if !found.Up || len(found.Routes) < len(addrs) {
		return fmt.Errorf("%s is up: %t, has routes %v", podInterface, found.Up, found.Routes)
	}
	return nil
}

// restartAgent starts an agent that was killed and waits until it serves: this
// one, not the one whose word the plugin's grace for STATUS still counts on.
func (l *Lab) restartAgent(t *testing.T, node string) {
	t.Helper()
	if err := os.Remove(l.socket(node) + ".healthy"); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := errors.Join(l.StartAgent(node), l.AwaitAgent(t.Context(), node)); err != nil {
		t.Fatal(err)
	}
}
