package cni

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/cni/wire"
	"github.com/netctl/netctl/internal/model"
)

func TestParseArgs(t *testing.T) {
	t.Parallel()
	full := Pod{Name: model.Name{Namespace: "default", Name: "web-0"}, UID: "0a1b-2c"}
	for _, c := range []struct {
		name, args string
		want       Pod
		err        string
	}{
		{"empty", "", Pod{}, ""},
		{"containerd", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=0a1b-2c", full, ""},
		{"other order", "K8S_POD_UID=0a1b-2c;K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=default;IgnoreUnknown=true", full, ""},
		{"stray semicolons", ";;K8S_POD_NAME=web-0;", Pod{Name: model.Name{Name: "web-0"}}, ""},
		{"value with equals in unknown key", "X=a=b;K8S_POD_NAME=web-0", Pod{Name: model.Name{Name: "web-0"}}, ""},
		{"empty value", "K8S_POD_NAME=", Pod{}, ""},
		{"same twice", "K8S_POD_NAME=a;K8S_POD_NAME=a", Pod{Name: model.Name{Name: "a"}}, ""},
		{"twice", "K8S_POD_NAME=a;K8S_POD_NAME=b", Pod{}, "twice"},
		{"no pair", "abc", Pod{}, "KEY=VALUE"},
		{"path", "K8S_POD_NAME=../../etc", Pod{}, "no Kubernetes name"},
		{"newline", "K8S_POD_NAME=a\nb", Pod{}, "no Kubernetes name"},
		{"upper case", "K8S_POD_NAMESPACE=Default", Pod{}, "no Kubernetes name"},
		{"long", "K8S_POD_NAME=" + strings.Repeat("a", 254), Pod{}, "no Kubernetes name"},
		{"uid with a slash", "K8S_POD_UID=a/b", Pod{}, "no Kubernetes name"},
	} {
		got, err := parseArgs(c.args)
		if (err == nil) != (c.err == "") || (err != nil && !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: got error %v, want %q", c.name, err, c.err)
		}
		if got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
}

func FuzzParseArgs(f *testing.F) {
	f.Add("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=0a1b")
	f.Add("K8S_POD_NAME=../x;=;;a")
	f.Fuzz(func(t *testing.T, args string) {
		p, err := parseArgs(args)
		if err != nil {
			if p != (Pod{}) {
				t.Errorf("error %v with pod %+v", err, p)
			}
			return
		}
		for _, v := range []string{p.Name.Namespace, p.Name.Name, p.UID} {
			if len(v) > maxNameLen || strings.ContainsAny(v, "/\\;= \n\t\x00") {
				t.Errorf("%q passed", v)
			}
		}
	})
}

// FuzzRequest runs everything that looks at a request before the Backend.
func FuzzRequest(f *testing.F) {
	config := `{"cniVersion":"1.1.0","name":"n","prevResult":{"interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"interface":0,"address":"10.0.0.1/32"}]},` +
		`"runtimeConfig":{"portMappings":[{"HostPort":1,"ContainerPort":2,"Protocol":"tcp"}],"ips":["10.0.0.1/24"]},"cni.dev/attachments":null}`
	for _, command := range []string{"ADD", "DEL", "CHECK", "GC", "STATUS"} {
		frame, err := wire.Frame(&wire.Request{Version: 1, Command: command, ContainerID: "a", Netns: "/x", IfName: "eth0", Args: "A=b", Config: json.RawMessage(config)})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(frame[4:])
	}
	f.Add([]byte(`{"v":1,"command":"CHECK","containerID":"a","netns":"b","ifname":"c","config":{"cniVersion":"0.4.0","name":"n","prevResult":{"interfaces":[null],"ips":[null]}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		req, werr := wire.DecodeRequest(body)
		if werr != nil {
			return
		}
		conf, werr := parseConfig(req.Command, req.Config)
		if werr != nil {
			return
		}
		switch req.Command {
		case wire.GC:
			_, _ = conf.valid()
		case wire.Add, wire.Check:
			a, werr := conf.attachment(req)
			if werr != nil {
				return
			}
			for _, m := range a.PortMappings {
				if m.HostPort == 0 || m.ContainerPort == 0 || m.Protocol == 0 {
					t.Errorf("mapping %+v passed", m)
				}
			}
			if prev, err := parsePrev(conf.PrevResult, &a); err == nil && len(prev.Addresses) == 0 {
				t.Error("previous result without an address passed")
			}
			out, err := render(&a, Result{Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}}, conf.CNIVersion, conf.PrevResult)
			if err == nil && !json.Valid(out) {
				t.Errorf("result is no JSON: %s", out)
			}
		}
	})
}

func TestRenderHandsOnWhatCameBefore(t *testing.T) {
	t.Parallel()
	a := &Attachment{ID: ID{"c", "eth1"}, NetnsPath: "/ns"}
	prev := `{"cniVersion":"1.0.0","interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"/ns"}],"ips":[{"interface":1,"address":"192.0.2.1/24"}],"dns":{"domain":"x"}}`
	out, err := render(a, Result{
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")},
		Routes:    []Route{{Dst: netip.MustParsePrefix("10.0.0.0/8")}},
	}, "1.0.0", json.RawMessage(prev))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := create.CreateFromBytes(out); err != nil {
		t.Errorf("the library refuses %s: %v", out, err)
	}
	var got, want any
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`{"cniVersion":"1.0.0","interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"/ns"},{"name":"eth1","sandbox":"/ns"}],
		"ips":[{"interface":1,"address":"192.0.2.1/24"},{"interface":2,"address":"10.0.0.1/32"}],"routes":[{"dst":"10.0.0.0/8"}],"dns":{"domain":"x"}}`), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("result (-got +want):\n%s", diff)
	}
}

func TestRenderRefusesInvalidResults(t *testing.T) {
	t.Parallel()
	a := &Attachment{ID: ID{"c", "eth0"}}
	for name, res := range map[string]Result{"address": {Addresses: []netip.Prefix{{}}}, "route": {Routes: []Route{{}}}} {
		if out, err := render(a, res, "1.0.0", nil); err == nil {
			t.Errorf("%s: got %s", name, out)
		}
	}
}

func TestKeyLock(t *testing.T) {
	t.Parallel()
	var k keyLock
	unlock, err := k.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if other, err := k.lock(t.Context(), "b"); err != nil {
		t.Error(err)
	} else {
		other()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.lock(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want a cancellation", err)
	}
	unlock()
	if len(k.held) != 0 {
		t.Errorf("%d keys kept", len(k.held))
	}
}

func TestRecentForgets(t *testing.T) {
	t.Parallel()
	var r recent
	start := time.Unix(1000, 0)
	r.add(ID{"a", "eth0"}, start)
	r.add(ID{"b", "eth0"}, start.Add(gcGrace))
	if got := r.list(start.Add(gcGrace + time.Second)); len(got) != 1 || got[0].ContainerID != "b" {
		t.Errorf("got %v, want b alone", got)
	}
}

// What the reference plugin refuses, and what no limit can be.
func TestBandwidth(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		b    Bandwidth
		says string
	}{
		{"none", Bandwidth{}, ""},
		{"both", Bandwidth{IngressRate: 1000, IngressBurst: 1, EgressRate: 1e15, EgressBurst: 1<<64 - 1}, ""},
		{"one", Bandwidth{EgressRate: 1e6, EgressBurst: 1<<32 - 1}, ""},
		{"rate without burst", Bandwidth{IngressRate: 1e6}, "ingressRate 1000000 with ingressBurst 0"},
		{"burst without rate", Bandwidth{EgressBurst: 1}, "egressRate 0 with egressBurst 1"},
		{"too little", Bandwidth{EgressRate: 999, EgressBurst: 1}, "egressRate 999"},
		{"too much", Bandwidth{IngressRate: 1e15 + 1, IngressBurst: 1}, "ingressRate 1000000000000001"},
	} {
		err := c.b.validate()
		if (c.says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.says)
		}
	}
}
