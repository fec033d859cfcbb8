package deploy_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/deploy"
)

func TestSet(t *testing.T) {
	t.Parallel()
	type m = map[string]any
	tests := []struct {
		name, text string
		want       deploy.Values
		err        string
	}{
		{name: "number", text: "config.mtu=1400", want: deploy.Values{"config": m{"mtu": int64(1400)}}},
		{name: "zero", text: "a=0", want: deploy.Values{"a": int64(0)}},
		{name: "leading zero is text", text: "a=0644", want: deploy.Values{"a": "0644"}},
		{name: "truth", text: "a=true,b=false", want: deploy.Values{"a": true, "b": false}},
		{name: "on is text", text: "config.dns=on", want: deploy.Values{"config": m{"dns": "on"}}},
		{name: "empty", text: "a=", want: deploy.Values{"a": ""}},
		{name: "equals sign in the value", text: "a=b=c", want: deploy.Values{"a": "b=c"}},
		{name: "two in one map", text: "config.mtu=1,config.workers=2", want: deploy.Values{"config": m{"mtu": int64(1), "workers": int64(2)}}},
		{name: "list", text: "config.clusterCIDRs={10.0.0.0/8,fd00::/48}", want: deploy.Values{"config": m{"clusterCIDRs": []any{"10.0.0.0/8", "fd00::/48"}}}},
		{name: "empty list", text: "a={}", want: deploy.Values{"a": []any{}}},
		{name: "dot in a key", text: `podLabels.example\.com/team=net`, want: deploy.Values{"podLabels": m{"example.com/team": "net"}}},
		{name: "comma in a value", text: `a=b\,c`, want: deploy.Values{"a": "b,c"}},
		{name: "null", text: "a=null", want: deploy.Values{"a": nil}},
		{name: "no value", text: "config.mtu", err: "write KEY=VALUE"},
		{name: "no key", text: "=1", err: "write KEY=VALUE"},
		{name: "index", text: "tolerations[0].key=a", err: "with a file of values"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := deploy.Values{}.Set(tt.text)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(got, tt.want); diff != "" {
				t.Errorf("values differ (-got +want):\n%s", diff)
			}
		})
	}
}

// FuzzSet: whatever is written, it is a value or an error.
func FuzzSet(f *testing.F) {
	for _, seed := range []string{"a.b=1", `a\.b=x\,y,c={1,{2}}`, "=", `\`, "a={", "a=}", "a.=,"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := deploy.Values{}.Set(text)
		if (v == nil) == (err == nil) {
			t.Errorf("Set(%q) = %v, %v", text, v, err)
		}
	})
}

func TestOverlayChangesNothing(t *testing.T) {
	t.Parallel()
	base := deploy.Values{"config": map[string]any{"mtu": 0, "dns": "auto"}, "tolerations": []any{"all"}}
	over := deploy.Values{"config": map[string]any{"mtu": 1400}, "tolerations": nil}
	got := base.Overlay(over)
	want := deploy.Values{"config": map[string]any{"mtu": 1400, "dns": "auto"}, "tolerations": nil}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("values differ (-got +want):\n%s", diff)
	}
	if diff := cmp.Diff(base["config"], map[string]any{"mtu": 0, "dns": "auto"}); diff != "" {
		t.Errorf("the base was changed:\n%s", diff)
	}
}

// TestWrongOptionsAreNamed: an option that is not there, or is not what it must
// be, is an error that names it.
func TestWrongOptionsAreNamed(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, values, want string
	}{
		{"unknown", "hostNetwork: false", "hostNetwork: there is no such option, but affinity,"},
		{"unknown below", "config: {MTU: 1400}", "config.MTU: there is no such option, but allowExternalIPs, apiServer,"},
		{"text for a number", "config: {mtu: large}", `config.mtu: "large" must be of type integer`},
		{"fraction", "config: {workers: 1.5}", "config.workers: 1.5 must be of type integer"},
		{"too small", "config: {wireguardPort: 0}", "config.wireguardPort: 0 is less than 1"},
		{"too large", "config: {wireguardPort: 65536}", "config.wireguardPort: 65536 is more than 65535"},
		{"not one of", "config: {proxy: iptables}", `config.proxy: "iptables" must be one of auto, full, pods`},
		{"YAML's truth", "config: {dns: on}", "config.dns: true must be of type string"},
		{"pattern", "config: {stateDir: run/netctl}", `config.stateDir: "run/netctl" must match ^/`},
		{"list for a map", "resources: []", "resources: must be of type object"},
		{"map for a list", "tolerations: {}", "tolerations: must be of type array"},
		{"element of a list", "config: {clusterCIDRs: [10]}", "config.clusterCIDRs[0]: 10 must be of type string"},
		{"taken away", "config: {proxy: null}", "config.proxy: must have a value"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v, err := deploy.ParseValues([]byte(tt.values), "test")
			if err != nil {
				t.Fatal(err)
			}
			_, err = deploy.Render(deploy.Options{Values: v})
			if !errors.Is(err, deploy.ErrValue) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
	if _, err := deploy.ParseValues([]byte("a: 1\na: 2"), "test"); err == nil {
		t.Error("a key that is there twice is no error")
	}
}

func TestImage(t *testing.T) {
	t.Parallel()
	digest := "sha256:" + strings.Repeat("0a", 32)
	for _, tt := range []struct{ reference, want string }{
		{"registry.example:5000/net/netctl:v9", "registry.example:5000/net/netctl:v9"},
		{"registry.example:5000/net/netctl", "registry.example:5000/net/netctl:v0.1.0"},
		{"netctl@" + digest, "netctl@" + digest},
		{"netctl:v9@" + digest, "netctl:v9@" + digest},
	} {
		v, err := deploy.ImageValues(tt.reference)
		if err != nil {
			t.Fatal(err)
		}
		got, err := deploy.Image(deploy.Options{Values: v})
		if err != nil || got != tt.want {
			t.Errorf("%s became %q, %v, want %q", tt.reference, got, err, tt.want)
		}
	}
	for _, bad := range []string{"", ":v1", "a b"} {
		if v, err := deploy.ImageValues(bad); err == nil {
			t.Errorf("%q became %v, want an error", bad, v)
		}
	}
}
