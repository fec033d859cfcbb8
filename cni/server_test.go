package cni_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types040 "github.com/containernetworking/cni/pkg/types/040"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/cni/wire"
	"github.com/netctl/netctl/internal/model"
)

func TestLifeInEveryVersion(t *testing.T) {
	t.Parallel()
	for _, version := range wire.SpecVersions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.start(true)
			ns := netns(t)
			ctx := t.Context()
			lib, list, rt := n.libcni(), n.list(version), container("pod1", ns)

			if _, err := lib.ValidateNetworkList(ctx, list); err != nil {
				t.Fatalf("validate: %v", err)
			}
			if err := lib.GetStatusNetworkList(ctx, list); err != nil {
				t.Errorf("status: %v", err)
			}
			res, err := lib.AddNetworkList(ctx, list, rt)
			if err != nil {
				t.Fatalf("add: %v", err)
			}
			checkResult(t, res, version, ns)

			var e *types.Error
			if _, err = lib.AddNetworkList(ctx, list, rt); !errors.As(err, &e) || e.Code != uint(wire.CodeConflict) {
				t.Errorf("second add: got %v, want code %d", err, wire.CodeConflict)
			}
			if n.agent.len() != 1 {
				t.Errorf("second add disturbed the first: %d ports", n.agent.len())
			}
			if version != "0.3.1" {
				if err := lib.CheckNetworkList(ctx, list, rt); err != nil {
					t.Errorf("check: %v", err)
				}
			}
			if err := lib.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "pod1", IfName: "eth0"}}}); err != nil {
				t.Errorf("gc: %v", err)
			}
			for range 2 {
				if err := lib.DelNetworkList(ctx, list, rt); err != nil {
					t.Errorf("del: %v", err)
				}
			}
			if n.agent.len() != 0 {
				t.Errorf("%d ports left", n.agent.len())
			}
		})
	}
}

func checkResult(t *testing.T, res types.Result, version, ns string) {
	t.Helper()
	if res.Version() != version {
		t.Errorf("result version: got %s, want %s", res.Version(), version)
	}
	if old, ok := res.(*types040.Result); ok {
		var families []string
		for _, ip := range old.IPs {
			families = append(families, ip.Version)
		}
		if diff := cmp.Diff(families, []string{"4", "6"}); diff != "" {
			t.Errorf("families (-got +want):\n%s", diff)
		}
	}
	r, err := types100.NewResultFromResult(res)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, ip := range r.IPs {
		got = append(got, fmt.Sprintf("%s on %s in %s", ip.Address.String(), r.Interfaces[*ip.Interface].Name, r.Interfaces[*ip.Interface].Sandbox))
	}
	for _, route := range r.Routes {
		got = append(got, fmt.Sprintf("%s via %s", route.Dst.String(), route.GW))
	}
	want := []string{
		"10.1.2.3/32 on eth0 in " + ns, "fd00::3/128 on eth0 in " + ns,
		"0.0.0.0/0 via <nil>", "::/0 via fe80::1",
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("result (-got +want):\n%s", diff)
	}
}

func TestAttachmentReachesBackend(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start(true)
	ns := netns(t)
	rt := container("pod1", ns)
	rt.CapabilityArgs = map[string]any{
		// As containerd spells them.
		"portMappings": []map[string]any{
			{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""},
			{"HostPort": 53, "ContainerPort": 53, "Protocol": "UDP", "HostIP": "192.0.2.1"},
			{"HostPort": 0, "ContainerPort": 9},
		},
		"bandwidth":                         map[string]any{"IngressRate": 1000, "IngressBurst": uint64(1<<64 - 1), "EgressRate": 0, "EgressBurst": 0},
		"ips":                               []string{"10.1.2.9/24", "fd00::9"},
		"io.kubernetes.cri.pod-annotations": map[string]string{"a": "<b>"},
	}
	if _, err := n.libcni().AddNetworkList(t.Context(), n.list("1.1.0"), rt); err != nil {
		t.Fatal(err)
	}
	id := cni.ID{ContainerID: "pod1", IfName: "eth0"}
	want := cni.Attachment{
		ID: id, Network: "netctl", NetnsPath: ns,
		Pod:       cni.Pod{Name: model.Name{Namespace: "default", Name: "web-0"}, UID: "4e7f"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.1.2.9"), netip.MustParseAddr("fd00::9")},
		PortMappings: []cni.PortMapping{
			{HostPort: 8080, ContainerPort: 80, Protocol: model.TCP},
			{HostIP: netip.MustParseAddr("192.0.2.1"), HostPort: 53, ContainerPort: 53, Protocol: model.UDP},
		},
		Bandwidth:   cni.Bandwidth{IngressRate: 1000, IngressBurst: 1<<64 - 1},
		Annotations: map[string]string{"a": "<b>"},
	}
	n.agent.mu.Lock()
	defer n.agent.mu.Unlock()
	if diff := cmp.Diff(n.agent.ports[id], want, cmpopts.IgnoreFields(cni.Attachment{}, "Netns"), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("attachment (-got +want):\n%s", diff)
	}
}

func TestBackendErrorsHaveCodesAndAdvice(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start(true)
	ns := netns(t)
	var fault error
	n.agent.onAdd = func(context.Context, cni.Attachment) error { return fault }
	for _, c := range []struct {
		name string
		err  error
		code wire.Code
		msg  string
	}{
		{"interface exists", fmt.Errorf("eth0: %w", cni.ErrInterfaceExists), wire.CodeInterface, "nothing was changed"},
		{"pool exhausted", fmt.Errorf("node-1: %w: 110 of 110 in use", cni.ErrPoolExhausted), wire.CodeUnavailable, "delete pods"},
		{"pool cooling", cni.ErrPoolCooling, wire.CodeTryAgain, "cool down"},
		{"netns gone", cni.ErrNetnsGone, wire.CodeNetns, "sandbox has ended"},
		{"duplicate", cni.ErrDuplicateAddress, wire.CodeDuplicateIP, "in use"},
		{"unsupported", cni.ErrUnsupported, wire.CodeUnsupported, "cannot do"},
		{"own code", fmt.Errorf("wrapped: %w", &cni.Error{Code: 142, Msg: "as it is"}), 142, "as it is"},
		{"unknown", errors.New("boom"), wire.CodeInternal, "log"},
	} {
		fault = c.err
		a := n.run("ADD", "", attach("pod1", ns)...)
		if a.exit != 1 || a.code() != c.code || !strings.Contains(a.out, c.msg) {
			t.Errorf("%s: got exit %d %s, want code %d with %q", c.name, a.exit, a.out, c.code, c.msg)
		}
		if n.agent.deleted() != 0 {
			t.Errorf("%s: a failed addition was deleted by the server, which may hit an older attachment", c.name)
		}
	}
}

func TestBackendPanicIsAnError(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start(true)
	n.agent.onAdd = func(context.Context, cni.Attachment) error { panic("boom") }
	if a := n.run("ADD", "", attach("pod1", netns(t))...); a.code() != wire.CodeInternal {
		t.Errorf("got %s, want code %d", a.out, wire.CodeInternal)
	}
	if a := n.status(0); a.exit != 0 {
		t.Errorf("status after a panic: %s", a.out)
	}
}

func TestRefusedInput(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start(true)
	ns := netns(t)
	fifo := n.dir + "/fifo"
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	good := attach("pod1", ns)
	for _, c := range []struct {
		name, op, config string
		env              []string
		code             wire.Code
		msg              string
	}{
		{"no such command", "FLY", "", good, wire.CodeEnvironment, "CNI_COMMAND"},
		{"no container", "ADD", "", []string{"CNI_NETNS=" + ns, "CNI_IFNAME=eth0"}, wire.CodeEnvironment, "CNI_CONTAINERID"},
		{"path as container", "ADD", "", attach("../x", ns), wire.CodeEnvironment, "CNI_CONTAINERID"},
		{"path as container in DEL", "DEL", "", attach("../x", ns), wire.CodeEnvironment, "CNI_CONTAINERID"},
		{"long container", "ADD", "", attach(strings.Repeat("a", 300), ns), wire.CodeEnvironment, "CNI_CONTAINERID"},
		{"template interface", "ADD", "", []string{"CNI_CONTAINERID=a", "CNI_NETNS=" + ns, "CNI_IFNAME=eth%d"}, wire.CodeEnvironment, "CNI_IFNAME"},
		{"long interface", "ADD", "", []string{"CNI_CONTAINERID=a", "CNI_NETNS=" + ns, "CNI_IFNAME=" + strings.Repeat("e", 16)}, wire.CodeEnvironment, "CNI_IFNAME"},
		{"bad pod name", "ADD", "", append(attach("a", ns), "CNI_ARGS=K8S_POD_NAME=a/../b"), wire.CodeEnvironment, "K8S_POD_NAME"},
		{"no pair", "ADD", "", append(attach("a", ns), "CNI_ARGS=rubbish"), wire.CodeEnvironment, "KEY=VALUE"},
		{"no JSON", "ADD", "{", good, wire.CodeDecode, "JSON"},
		{"no object", "ADD", "[]", good, wire.CodeDecode, ""},
		{"null", "ADD", "null", good, wire.CodeDecode, "object"},
		{"empty", "ADD", " ", good, wire.CodeDecode, ""},
		{"too long", "ADD", `{"x":"` + strings.Repeat("a", wire.MaxConfig) + `"}`, good, wire.CodeIO, "longer"},
		{"old version", "ADD", n.config("0.2.0", ""), good, wire.CodeIncompatible, "0.3.1"},
		{"no version", "ADD", n.config("", ""), good, wire.CodeIncompatible, "0.3.1"},
		{"future version", "ADD", n.config("9.0.0", ""), good, wire.CodeIncompatible, "1.1.0"},
		{"check too old", "CHECK", n.config("0.3.1", ""), good, wire.CodeIncompatible, "0.4.0"},
		{"gc too old", "GC", n.config("1.0.0", ""), nil, wire.CodeIncompatible, "1.1.0"},
		{"relative socket", "ADD", `{"cniVersion":"1.0.0","name":"x","socket":"run/x"}`, good, wire.CodeConfig, "absolute"},
		{"bad network name", "ADD", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"a/b","socket":%q}`, n.socket), good, wire.CodeConfig, "name"},
		{"bad port", "ADD", n.config("1.0.0", `,"runtimeConfig":{"portMappings":[{"hostPort":70000,"containerPort":1}]}`), good, wire.CodeConfig, "portMappings"},
		{"bad address", "ADD", n.config("1.0.0", `,"runtimeConfig":{"ips":["127.0.0.1"]}`), good, wire.CodeConfig, "ips"},
		{"netns gone", "ADD", "", attach("a", "/proc/1/ns/none"), wire.CodeNetns, "gone"},
		{"netns of another kind", "ADD", "", attach("a", "/proc/self/ns/mnt"), wire.CodeNotNetns, "not a network namespace"},
		{"netns is a file", "ADD", "", attach("a", "/dev/null"), wire.CodeNotNetns, "not a network namespace"},
		{"netns is a fifo", "ADD", "", attach("a", fifo), wire.CodeNotNetns, "not a network namespace"},
		{"own netns", "ADD", "", attach("a", "/proc/self/ns/net"), wire.CodeNetns, "node's own"},
		{"gc without a list", "GC", "", nil, wire.CodeConfig, "nothing was removed"},
		{"gc with a bad list", "GC", n.config("1.1.0", `,"cni.dev/attachments":7`), nil, wire.CodeDecode, "nothing was removed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := c.config
			if config == "" {
				config = n.config("1.1.0", "")
			}
			a := execute(t, n.command(c.op, config, c.env...))
			if a.exit != 1 || a.code() != c.code || !strings.Contains(a.out, c.msg) {
				t.Errorf("got exit %d %.300s, want code %d with %q", a.exit, a.out, c.code, c.msg)
			}
		})
	}
	if n.agent.len() != 0 {
		t.Errorf("%d ports were made", n.agent.len())
	}
}

func TestDelMindsNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start(true)
	for name, more := range map[string]string{
		"no prevResult":        "",
		"prevResult is null":   `,"prevResult":null`,
		"prevResult is number": `,"prevResult":42`,
		"prevResult is text":   `,"prevResult":"x"`,
		"prevResult has nulls": `,"prevResult":{"interfaces":[null],"ips":[null],"routes":[null]}`,
		"runtimeConfig broken": `,"runtimeConfig":{"portMappings":"x","ips":7}`,
	} {
		for _, ns := range []string{"", "/proc/1/ns/none", "/dev/null"} {
			env := append(attach("unknown", ns), "CNI_ARGS=rubbish")
			if a := n.run("DEL", more, env...); a.exit != 0 || a.out != "" {
				t.Errorf("%s, netns %q: exit %d %s", name, ns, a.exit, a.out)
			}
		}
	}
}

func TestCheckWantsPrevResult(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start(true)
	ns := netns(t)
	var prev cni.Result
	n.agent.onCheck = func(_ cni.Attachment, p cni.Result) error { prev = p; return nil }
	good := `{"cniVersion":"1.1.0","interfaces":[{"name":"host"},{"name":"eth0","sandbox":"/x","mtu":1400}],` +
		`"ips":[{"interface":0,"address":"1.1.1.1/32"},{"interface":1,"address":"10.0.0.1/32"}],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0","gw":"fe80::1"}]}`
	for _, c := range []struct {
		name, prev string
		code       wire.Code
	}{
		{"missing", "", wire.CodeConfig},
		{"null", `,"prevResult":null`, wire.CodeConfig},
		{"number", `,"prevResult":42`, wire.CodeConfig},
		{"nulls", `,"prevResult":{"interfaces":[null],"ips":[null]}`, wire.CodeConfig},
		{"other interface", `,"prevResult":{"interfaces":[{"name":"eth1","sandbox":"/x"}]}`, wire.CodeConfig},
		{"no address", `,"prevResult":{"interfaces":[{"name":"eth0","sandbox":"/x"}]}`, wire.CodeConfig},
		{"bad address", `,"prevResult":{"interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"interface":0,"address":"x"}]}`, wire.CodeConfig},
		{"good", `,"prevResult":` + good, 0},
	} {
		if a := n.run("CHECK", c.prev, attach("pod1", ns)...); a.code() != c.code {
			t.Errorf("%s: got %s, want code %d", c.name, a.out, c.code)
		}
	}
	want := cni.Result{
		MTU: 1400, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")},
		Routes: []cni.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0")}, {Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fe80::1")}},
	}
	if fmt.Sprint(prev) != fmt.Sprint(want) {
		t.Errorf("prevResult: got %v, want %v", prev, want)
	}
	n.agent.onCheck = func(cni.Attachment, cni.Result) error { return fmt.Errorf("eth0 has no route: %w", cni.ErrDiffers) }
	if a := n.run("CHECK", `,"prevResult":`+good, attach("pod1", ns)...); a.code() != wire.CodeCheck {
		t.Errorf("difference: got %s", a.out)
	}
}

func TestStatusCodes(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start(true)
	var fault error
	n.agent.onStatus = func(context.Context) error { return fault }
	for _, c := range []struct {
		name string
		err  error
		code wire.Code
	}{
		{"pool exhausted never fails a node", cni.ErrPoolExhausted, 0},
		{"pool cooling never fails a node", cni.ErrPoolCooling, 0},
		{"limited", cni.ErrLimited, wire.CodeLimited},
		{"unavailable", cni.ErrUnavailable, wire.CodeUnavailable},
		{"unknown", errors.New("boom"), wire.CodeUnavailable},
		{"healthy", nil, 0},
	} {
		fault = c.err
		if a := n.status(c.code); a.code() != c.code {
			t.Errorf("%s: got %s, want code %d", c.name, a.out, c.code)
		}
	}
}

func TestGCKeepsBothListsAndTheYoung(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start(true)
	if a := n.run("ADD", "", attach("young", netns(t))...); a.exit != 0 {
		t.Fatal(a.out)
	}
	young := cni.ID{ContainerID: "young", IfName: "eth0"}
	a, b := cni.ID{ContainerID: "a", IfName: "eth0"}, cni.ID{ContainerID: "b", IfName: "net1"}
	for _, c := range []struct {
		name, more string
		want       []cni.ID
	}{
		{"one key", `,"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]`, []cni.ID{a, young}},
		{"other key", `,"cni.dev/attachments":[{"containerID":"b","ifname":"net1"}]`, []cni.ID{b, young}},
		{"both", `,"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}],"cni.dev/attachments":[{"containerID":"b","ifname":"net1"}]`, []cni.ID{a, b, young}},
		{"empty", `,"cni.dev/valid-attachments":[]`, []cni.ID{young}},
		{"null is empty", `,"cni.dev/valid-attachments":null`, []cni.ID{young}},
	} {
		if out := n.run("GC", c.more); out.exit != 0 {
			t.Errorf("%s: %s", c.name, out.out)
		}
		n.agent.mu.Lock()
		if !slices.Equal(n.agent.valid, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, n.agent.valid, c.want)
		}
		n.agent.mu.Unlock()
	}
	n.run("DEL", "", attach("young", "")...)
	n.run("GC", `,"cni.dev/valid-attachments":[]`)
	n.agent.mu.Lock()
	defer n.agent.mu.Unlock()
	if len(n.agent.valid) != 0 {
		t.Errorf("deleted attachment is still protected: %v", n.agent.valid)
	}
}

func TestParallelContainers(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start(true)
	ns := netns(t)
	n.agent.onAdd = func(context.Context, cni.Attachment) error { time.Sleep(10 * time.Millisecond); return nil }
	ctx, lib, list := t.Context(), n.libcni(), n.list("1.1.0")
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			rt := container(fmt.Sprintf("pod%d", i), ns)
			if _, err := lib.AddNetworkList(ctx, list, rt); err != nil {
				t.Errorf("add: %v", err)
			}
			if err := lib.CheckNetworkList(ctx, list, rt); err != nil {
				t.Errorf("check: %v", err)
			}
			if err := lib.DelNetworkList(ctx, list, rt); err != nil {
				t.Errorf("del: %v", err)
			}
		})
	}
	wg.Wait()
	if n.agent.len() != 0 {
		t.Errorf("%d ports left", n.agent.len())
	}
	if n.agent.top < 2 {
		t.Error("different containers were served one after the other")
	}
}

func TestOneContainerIsSerial(t *testing.T) {
	t.Parallel()
	n := newNode(t) // its cleanup reports overlaps
	n.start(true)
	ns := netns(t)
	n.agent.onAdd = func(context.Context, cni.Attachment) error { time.Sleep(5 * time.Millisecond); return nil }
	n.agent.onDel = func(context.Context, cni.ID) error { time.Sleep(5 * time.Millisecond); return nil }
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			op := []string{"ADD", "DEL"}[i%2]
			if a := n.run(op, "", attach("pod1", ns)...); a.exit != 0 && a.code() != wire.CodeConflict {
				t.Errorf("%s: %s", op, a.out)
			}
		})
	}
	wg.Wait()
}

func TestOtherUsersAreRefused(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root to become another user")
	}
	n := newNode(t)
	n.start(true)
	// Even if somebody opens the path to everybody.
	for path, mode := range map[string]os.FileMode{n.dir: 0o755, n.dir + "/run": 0o755, n.socket: 0o666, pluginDir: 0o755} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	cmd := n.command("STATUS", n.config("1.1.0", ""))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if a := execute(t, cmd); a.exit != 1 || !strings.Contains(a.out, "user 65534 may not") {
		t.Errorf("got exit %d %s", a.exit, a.out)
	}
}

func TestSocketIsPrivate(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	if err := os.MkdirAll(n.dir+"/run", 0o755); err != nil {
		t.Fatal(err)
	}
	n.start(true)
	for path, want := range map[string]os.FileMode{n.socket: 0o600, n.dir + "/run": 0o700} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s: got mode %v, want %v", path, got, want)
		}
	}
	for _, shared := range []string{"/run/x.sock", "/tmp/x.sock", "/var/run/x.sock"} {
		s, err := cni.NewServer(cni.Config{Socket: shared, Backend: n.agent, Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "shared") {
			t.Errorf("%s: got %v, want a refusal", shared, err)
		}
	}
}

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	_, err := cni.NewServer(cni.Config{Socket: "relative"})
	for _, want := range []string{"absolute", "backend", "logger"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}
