package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/agent/settings"
)

// flagOf spells a key of the configuration file as a flag: clusterCIDRs is
// --cluster-cidrs.
func flagOf(key string) string {
	var b strings.Builder
	for i := range len(key) {
		upper := func(i int) bool { return i >= 0 && i < len(key) && key[i] >= 'A' && key[i] <= 'Z' }
		next := i+1 < len(key) && !upper(i+1) && !strings.HasPrefix(key[i+1:], "s")
		if i > 0 && upper(i) && (!upper(i-1) || next) {
			b.WriteByte('-')
		}
		b.WriteString(strings.ToLower(key[i : i+1]))
	}
	return b.String()
}

// Every key of the configuration file has a flag, with the same default, and a
// flag that is given counts more than the file.
func TestAgentFlagsAndFile(t *testing.T) {
	t.Parallel()
	other := map[string][2]string{ // what the file says, what the flag says
		"clusterCIDRs": {"[10.1.0.0/16]", "10.2.0.0/16"}, "clusterDomain": {"a.example", "b.example"}, "apiServer": {"a:6443", "b:6443"},
		"kubeletConf": {"/a", "/b"}, "wireguardPort": {"1000", "2000"}, "mtu": {"1400", "1500"}, "workers": {"2", "3"},
		"proxy": {"full", "pods"}, "dns": {"on", "off"}, "egress": {"auto", "packets"}, "cniBinDir": {"/a", "/b"}, "cniConfDir": {"/a", "/b"},
		"nodePortAddresses": {"[all]", "primary"}, "allowExternalIPs": {"true", "false"}, "loadBalancerPools": {"[203.0.113.1]", "203.0.113.2"},
		"healthzBindAddress": {"0.0.0.0:1", "0.0.0.0:2"}, "metricsBindAddress": {"127.0.0.1:1", "127.0.0.1:2"},
		"stateDir": {"/a", "/b"}, "dataDir": {"/a", "/b"}, "logLevel": {"warn", "error"},
	}
	field := func(s *settings.Settings, i int) string {
		return strings.Trim(fmt.Sprint(reflect.ValueOf(s).Elem().Field(i).Interface()), "[]")
	}
	keys := reflect.TypeFor[settings.Settings]()
	for i := range keys.NumField() {
		key := keys.Field(i).Tag.Get("json")
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			values, ok := other[key]
			if !ok {
				t.Fatal("no values to try")
			}
			path := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(path, []byte(key+": "+values[0]+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				name string
				args []string
				want string
			}{
				{"file", []string{"--config", path}, strings.Trim(values[0], "[]")},
				{"flag", []string{"--" + flagOf(key) + "=" + values[1]}, values[1]},
				{"both", []string{"--config", path, "--" + flagOf(key) + "=" + values[1]}, values[1]},
			} {
				f := agentFlags{Settings: settings.Default()}
				cmd := newAgent(streams{})
				cmd.ResetFlags()
				f.bind(cmd)
				flag := cmd.Flags().Lookup(flagOf(key))
				if flag == nil {
					t.Fatalf("no flag --%s", flagOf(key))
				}
				d := settings.Default()
				if got := strings.Trim(flag.DefValue, "[]"); got != field(&d, i) {
					t.Errorf("the flag's default is %q, the file's %q", got, field(&d, i))
				}
				if err := cmd.ParseFlags(c.args); err != nil {
					t.Fatal(err)
				}
				got, err := f.merge(cmd.Flags().Changed)
				if err != nil || field(&got, i) != c.want {
					t.Errorf("%s: %q, %v, want %q", c.name, field(&got, i), err, c.want)
				}
			}
		})
	}
}

func TestAgentChoosesItsSource(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		f          sourceFlags
		want, says string
	}{
		{sourceFlags{}, "directory", ""}, // this test runs in no cluster
		{sourceFlags{clusterDir: "/x"}, "directory", ""},
		{sourceFlags{kubeconfig: "/x"}, "kubernetes", ""},
		{sourceFlags{source: "kubernetes"}, "kubernetes", ""},
		{sourceFlags{source: "directory"}, "directory", ""},
		{sourceFlags{source: "etcd"}, "", `--source "etcd"`},
		{sourceFlags{source: "directory", kubeconfig: "/x"}, "", "--kubeconfig"},
		{sourceFlags{source: "kubernetes", clusterDir: "/x"}, "", "--cluster-dir"},
		{sourceFlags{clusterDir: "/x", kubeconfig: "/x"}, "", "give one"},
	} {
		got, err := c.f.chooseSource()
		if got != c.want || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %q, %v, want %q, %q", c.f, got, err, c.want, c.says)
		}
	}
}
