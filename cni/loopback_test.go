package cni_test

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/netctl/netctl/cni/wire"
)

func TestLoopback(t *testing.T) {
	t.Parallel()
	for _, version := range wire.SpecVersions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			n := newNode(t) // no agent is needed
			ns := netns(t)
			list, err := libcni.NetworkConfFromBytes([]byte(`{"cniVersion":"` + version + `","name":"cni-loopback","plugins":[{"type":"loopback"}]}`))
			if err != nil {
				t.Fatal(err)
			}
			rt := &libcni.RuntimeConf{ContainerID: "pod1", NetNS: ns, IfName: "lo"}
			lib := n.libcni()
			res, err := lib.AddNetworkList(t.Context(), list, rt)
			if err != nil {
				t.Fatal(err)
			}
			r, err := types100.NewResultFromResult(res)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Interfaces) != 1 || r.Interfaces[0].Name != "lo" || len(r.IPs) == 0 || r.IPs[0].Address.String() != "127.0.0.1/8" {
				t.Errorf("result: %+v", r)
			}
			isUp := func() bool {
				out, err := exec.Command("nsenter", "--net="+ns, "ip", "-o", "link", "show", "lo").CombinedOutput()
				if err != nil {
					t.Skipf("cannot look into the namespace here: %v %s", err, out)
				}
				return strings.Contains(string(out), ",UP,")
			}
			if version != "0.3.1" {
				if err := lib.CheckNetworkList(t.Context(), list, rt); err != nil {
					t.Errorf("check: %v", err)
				}
			}
			if !isUp() {
				t.Error("lo is down after ADD")
			}
			for range 2 {
				if err := lib.DelNetworkList(t.Context(), list, rt); err != nil {
					t.Errorf("del: %v", err)
				}
			}
			if isUp() {
				t.Error("lo is up after DEL")
			}
		})
	}
}

func TestLoopbackRefusals(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	ns := netns(t)
	run := func(op, config, ns string) answer {
		cmd := n.command(op, config, "CNI_CONTAINERID=pod1", "CNI_IFNAME=lo", "CNI_NETNS="+ns)
		cmd.Path, cmd.Args = pluginDir+"/loopback", []string{pluginDir + "/loopback"}
		return execute(t, cmd)
	}
	const config = `{"cniVersion":"1.0.0","name":"lo"}`
	if a := run("ADD", config, "/proc/1/ns/none"); a.code() != wire.CodeNetns {
		t.Errorf("namespace gone: %s", a.out)
	}
	if a := run("ADD", config, "/dev/null"); a.code() != wire.CodeInternal {
		t.Errorf("no namespace: %s", a.out)
	}
	if a := run("CHECK", config, ns); a.code() != wire.CodeInternal || !strings.Contains(a.out, "down") {
		t.Errorf("check of lo that is down: %s", a.out)
	}
	for _, gone := range []string{"", "/proc/1/ns/none", "/dev/null"} {
		if a := run("DEL", config, gone); a.exit != 0 {
			t.Errorf("del in %q: %s", gone, a.out)
		}
	}
	if a := run("STATUS", config, ""); a.exit != 0 {
		t.Errorf("status: %s", a.out)
	}
	a := run("ADD", `{"cniVersion":"1.0.0","name":"lo","prevResult":{"cniVersion":"1.0.0","ips":[{"address":"192.0.2.1/32"}]}}`, ns)
	var r struct{ IPs []struct{ Address string } }
	if err := json.Unmarshal([]byte(a.out), &r); err != nil || len(r.IPs) != 1 || r.IPs[0].Address != "192.0.2.1/32" {
		t.Errorf("chained: %s", a.out)
	}
}
