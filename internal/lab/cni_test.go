package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sync/errgroup"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
)

func TestCNIHundredAtOnce(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1, Families: DualStack})
	const n = 100
	boxes := make([]*box, n)
	for i := range boxes {
		boxes[i] = l.box(t, "node1", fmt.Sprintf("p%d", i))
	}
	var mu sync.Mutex
	got := map[*box][]netip.Addr{}
	var g errgroup.Group
	start := time.Now()
	for _, b := range boxes {
		g.Go(func() error {
			addrs, err := b.add(t.Context())
			mu.Lock()
			defer mu.Unlock()
			got[b] = addrs
			if err == nil && len(addrs) != 2 {
				err = fmt.Errorf("addresses %v, want two", addrs)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d ADDs at once in %s", n, time.Since(start))
	l.checkBooks(t, "node1", got)
	for _, b := range boxes {
		g.Go(func() error { return b.del(t.Context()) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	l.checkBooks(t, "node1", nil)
	for _, b := range boxes {
		if err := b.matches(t, nil); err != nil {
			t.Errorf("%s: %v", b.name.Name, err)
		}
	}
}

func TestCNIAddOverAnInterfaceDisturbsNothing(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1})
	b := l.box(t, "node1", "a")
	addrs, err := b.add(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other := *b
	other.id = newContainerID() // another container, the same namespace
	if _, err := other.add(t.Context()); code(err) != 104 || !strings.Contains(err.Error(), podInterface) {
		t.Errorf("over an interface of ours: %v", err)
	}
	if _, err := b.add(t.Context()); code(err) != 103 {
		t.Errorf("the same attachment again: %v", err)
	}
	l.checkBooks(t, "node1", map[*box][]netip.Addr{b: addrs})
	if err := b.check(t.Context()); err != nil {
		t.Errorf("the first one after that: %v", err)
	}
	// And over an interface of somebody else.
	c := l.box(t, "node1", "c")
	foreign := netip.MustParsePrefix("172.16.0.1/24")
	ns := c.netns(t)
	if err := errors.Join(kernel.CreateBridge(ns, podInterface), kernel.AddAddress(ns, podInterface, foreign)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.add(t.Context()); code(err) != 104 {
		t.Errorf("over an interface of others: %v", err)
	}
	if err := c.del(t.Context()); err != nil {
		t.Errorf("DEL after that: %v", err)
	}
	if found, err := kernel.Describe(ns, podInterface); err != nil || !slices.Contains(found.Addresses, foreign) {
		t.Errorf("the other's interface: %v, %v", found, err)
	}
	l.checkBooks(t, "node1", map[*box][]netip.Addr{b: addrs})
}

// A runtime that dies or runs out of patience kills its plugin at any moment.
func TestCNIKilledAddLeavesNothing(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1})
	kept := map[*box][]netip.Addr{}
	for i := range 25 {
		b := l.box(t, "node1", fmt.Sprintf("k%d", i))
		cmd := exec.Command(l.path("cni", "bin", "netctl-cni"))
		cmd.Env = []string{
			"CNI_COMMAND=ADD", "CNI_CONTAINERID=" + b.id, "CNI_NETNS=" + b.rt().NetNS, "CNI_IFNAME=eth0", "CNI_PATH=/",
			"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=" + b.name.Name + ";K8S_POD_NAMESPACE=default",
		}
		var out strings.Builder
		cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"cniVersion":"1.1.0","name":"netctl","type":"netctl-cni","socket":%q}`, l.socket("node1")))
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(15_000)) * time.Microsecond)
		_ = cmd.Process.Kill()
		if err := cmd.Wait(); err == nil { // it was faster
			var res types100.Result
			if err := json.Unmarshal([]byte(out.String()), &res); err != nil {
				t.Fatalf("%v: %s", err, out.String())
			}
			a, _ := netip.AddrFromSlice(res.IPs[0].Address.IP)
			kept[b] = []netip.Addr{a.Unmap()}
		}
	}
	t.Logf("%d of 25 were done before they were killed", len(kept))
	l.checkBooks(t, "node1", kept)
}

func TestCNIDel(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1})
	b := l.box(t, "node1", "a")
	if err := b.del(t.Context()); err != nil {
		t.Errorf("of the unknown: %v", err)
	}
	if _, err := b.add(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.del(t.Context()); err != nil {
			t.Errorf("twice: %v", err)
		}
	}
	l.checkBooks(t, "node1", nil)
	if err := b.matches(t, nil); err != nil {
		t.Error(err)
	}
	// The namespace went first.
	if _, err := b.add(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := kernel.DeleteNamespace(b.rt().NetNS); err != nil {
		t.Fatal(err)
	}
	if err := b.del(t.Context()); err != nil {
		t.Errorf("without the namespace: %v", err)
	}
	l.checkBooks(t, "node1", nil)

	// The agent is down: the deletion is remembered and done when it is back.
	c := l.box(t, "node1", "c")
	addrs, err := c.add(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.KillAgent("node1"); err != nil {
		t.Fatal(err)
	}
	if err := c.del(t.Context()); err != nil {
		t.Errorf("without the agent: %v", err)
	}
	if b := l.books(t, "node1"); !slices.Equal(b.leases[c.id], addrs) {
		t.Errorf("leases %v, want that of the pod: nobody was there to release it", b.leases)
	}
	if _, err := l.box(t, "node1", "d").add(t.Context()); code(err) != types.ErrTryAgainLater || !strings.Contains(err.Error(), "agent") {
		t.Errorf("ADD without the agent: %v", err)
	}
	l.restartAgent(t, "node1")
	l.checkBooks(t, "node1", nil)
	if err := c.matches(t, nil); err != nil {
		t.Error(err)
	}
}

func TestCNICheckFindsChanges(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1, Families: DualStack})
	for _, c := range []struct {
		name string
		args []string
		says string
	}{
		{"nothing", []string{"true"}, ""},
		{"an address removed", []string{"ip", "-4", "addr", "flush", "dev", "eth0"}, "address"},
		{"an IPv6 address removed", []string{"ip", "-6", "addr", "flush", "dev", "eth0"}, "address"},
		{"a route removed", []string{"ip", "route", "del", "default"}, "route"},
		{"interface down", []string{"ip", "link", "set", "eth0", "down"}, "down"},
		{"interface removed", []string{"ip", "link", "del", "eth0"}, "missing"},
		{"interface renamed", []string{"ip", "link", "set", "eth0", "down", "name", "eth9"}, "missing"},
	} {
		b := l.box(t, "node1", "check")
		if _, err := b.add(t.Context()); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(c.args[0], c.args[1:]...)
		if err := kernel.StartIn(b.netns(t), cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v: %v", c.args, err)
		}
		err := b.check(t.Context())
		if (c.says == "") != (err == nil) || err != nil && (code(err) != 105 || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err := b.del(t.Context()); err != nil {
			t.Errorf("%s: DEL: %v", c.name, err)
		}
		if err := kernel.DeleteNamespace(b.rt().NetNS); err != nil {
			t.Error(err)
		}
	}
	l.checkBooks(t, "node1", nil)
}

func TestCNIGC(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1})
	stay, leave := l.box(t, "node1", "stay"), l.box(t, "node1", "leave")
	kept, err := stay.add(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leave.add(t.Context()); err != nil {
		t.Fatal(err)
	}
	gc := func() {
		t.Helper()
		err := l.libcni().GCNetworkList(t.Context(), stay.conf, &libcni.GCArgs{
			ValidAttachments: []types.GCAttachment{{ContainerID: stay.id, IfName: podInterface}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// The runtime lost its own notes of the one that shall leave.
	if err := os.RemoveAll(l.path("cni", "cache")); err != nil {
		t.Fatal(err)
	}
	gc()
	if b := l.books(t, "node1"); len(b.leases) != 2 {
		t.Errorf("leases %v: a moment old, it may not be on the runtime's list yet", b.leases)
	}
	// Only the agent that added it knows that it is young.
	if err := l.KillAgent("node1"); err != nil {
		t.Fatal(err)
	}
	l.restartAgent(t, "node1")
	gc()
	l.checkBooks(t, "node1", map[*box][]netip.Addr{stay: kept})
	if err := leave.matches(t, nil); err != nil {
		t.Error(err)
	}
}

// A node whose addresses are used up is not a broken node: only ADD fails, and
// says with numbers why.
func TestCNIPoolExhausted(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1})
	block := l.plan.nodeBlocks[0][0]
	var tiny model.Node
	tiny.Name, tiny.PodCIDRs = "node1", []netip.Prefix{netip.PrefixFrom(block.Addr(), 29)}
	tiny.Addresses = []netip.Addr{l.plan.nodeAddresses(0)[0].Addr()}
	if err := l.write(cluster.NodeObject(&tiny)); err != nil {
		t.Fatal(err)
	}
	if err := l.KillAgent("node1"); err != nil { // an agent reads its range anew
		t.Fatal(err)
	}
	l.restartAgent(t, "node1")
	var last *box
	var err error
	n := 0
	for ; n < 9; n++ {
		last = l.box(t, "node1", fmt.Sprintf("x%d", n))
		if _, err = last.add(t.Context()); err != nil {
			break
		}
	}
	if n != 4 && n != 5 {
		t.Errorf("%d pods had room in a /29", n)
	}
	if code(err) != 50 || !strings.Contains(err.Error(), fmt.Sprintf("%d used", n)) {
		t.Errorf("ADD on a full node: code %d, %v", code(err), err)
	}
	if err := l.libcni().GetStatusNetworkList(t.Context(), last.conf); err != nil {
		t.Errorf("STATUS of a full node: %v", err)
	}
}

func TestCNIStatusHasAGraceOverRestarts(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1})
	conf, err := l.conflist("node1")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.KillAgent("node1"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := l.libcni().GetStatusNetworkList(t.Context(), conf); err != nil {
		t.Errorf("an agent that served a moment ago: %v", err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("STATUS took %s", took)
	}
	// Without a memory of a healthy agent there is no grace.
	other := l.path("nodes", "node1", "other", "cni.sock")
	text := strings.ReplaceAll(string(conf.Bytes), l.socket("node1"), other)
	never, err := libcni.ConfListFromBytes([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.libcni().GetStatusNetworkList(t.Context(), never); code(err) != 50 || !strings.Contains(err.Error(), other) {
		t.Errorf("an agent that was never there: %v", err)
	}
}

// The pod is gone and nobody said so: the next agent gives its address back.
func TestCNINamespaceGoneWithoutDel(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1})
	stay, leave := l.box(t, "node1", "stay"), l.box(t, "node1", "leave")
	kept, err := stay.add(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leave.add(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := kernel.DeleteNamespace(leave.rt().NetNS); err != nil {
		t.Fatal(err)
	}
	if err := l.KillAgent("node1"); err != nil {
		t.Fatal(err)
	}
	l.restartAgent(t, "node1")
	l.checkBooks(t, "node1", map[*box][]netip.Addr{stay: kept})
}

// The agent dies again and again while pods come and go.
func TestCNIAgentKilledDuringCreations(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1, Families: DualStack})
	const n = 30
	var mu sync.Mutex
	got := map[*box][]netip.Addr{}
	boxes := make([]*box, n)
	for i := range boxes {
		boxes[i] = l.box(t, "node1", fmt.Sprintf("p%d", i))
	}
	var g errgroup.Group
	for _, b := range boxes {
		g.Go(func() error {
			deadline := time.Now().Add(20 * time.Second)
			for {
				addrs, err := b.add(t.Context())
				if err == nil {
					mu.Lock()
					defer mu.Unlock()
					got[b] = addrs
					return nil
				}
				if time.Now().After(deadline) {
					return fmt.Errorf("%s: %w", b.name.Name, err)
				}
				// As a kubelet does: a DEL follows, and the next one is another container.
				if err := b.del(t.Context()); err != nil {
					return fmt.Errorf("%s: DEL: %w", b.name.Name, err)
				}
				b.id = newContainerID()
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	for range 4 {
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		eventually(t, 5*time.Second, func() error { return l.KillAgent("node1") }) // it may not be an agent yet
		if err := l.StartAgent("node1"); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	l.checkBooks(t, "node1", got)
	for _, b := range boxes[:n/2] {
		if err := b.del(t.Context()); err != nil {
			t.Error(err)
		}
		delete(got, b)
	}
	l.checkBooks(t, "node1", got)
}
