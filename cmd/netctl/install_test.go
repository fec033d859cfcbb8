package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/netctl/netctl/deploy"
	"github.com/netctl/netctl/internal/agent/settings"
)

// netctl runs the command as main does.
func netctl(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, talk bytes.Buffer
	code = run(t.Context(), args, streams{in: strings.NewReader(stdin), out: &out, err: &talk})
	return code, out.String(), talk.String()
}

func TestInstallPrintsTheManifest(t *testing.T) {
	t.Parallel()
	want, err := os.ReadFile("../../deploy/netctl.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"install"}, {"install", "--dry-run"}} {
		if code, got, talk := netctl(t, "", args...); code != 0 || got != string(want) {
			t.Errorf("%v: exit %d, %d bytes, want those of deploy/netctl.yaml; %s", args, code, len(got), talk)
		}
	}
}

// TestInstallOptions: later files lie over earlier ones, --set over files.
func TestInstallOptions(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte("config: {mtu: 1300, workers: 3}\nimage: {pullPolicy: Never}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, talk := netctl(t, "config: {workers: 4}", "install", "-n", "net", "-f", file, "-f", "-",
		"--set", "config.mtu=1400", "--set", "podLabels.a=b", "--image", "registry.example/n:v9")
	if code != 0 {
		t.Fatal(talk)
	}
	for _, want := range []string{
		"mtu: 1400\n", "workers: 4\n", "imagePullPolicy: Never\n", "a: b\n", `image: "registry.example/n:v9"`, "namespace: net\n",
		"system:serviceaccount:net:netctl",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("there is no %q", want)
		}
	}
}

func TestInstallNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--set", "config.MTU=1"}, "config.MTU: there is no such option"},
		{[]string{"--set", "config"}, "write KEY=VALUE"},
		{[]string{"--image", ":v1"}, `":v1" is not the name of an image`},
		{[]string{"-f", "-"}, "-: "},
	} {
		code, out, talk := netctl(t, "a: [", append([]string{"install"}, tt.args...)...)
		if code != exitUsage || out != "" || !strings.Contains(talk, tt.want) {
			t.Errorf("%v: exit %d, %q, want %d and %q", tt.args, code, talk, exitUsage, tt.want)
		}
	}
	if code, _, talk := netctl(t, "", "install", "-f", "missing.yaml"); code != exitFailed || !strings.Contains(talk, "missing.yaml") {
		t.Errorf("a file that is not there: exit %d, %s", code, talk)
	}
}

// TestAgentsReadTheirConfigMap: the configuration that is installed is one that
// agents take, every key of theirs is in it, and its values are their defaults.
func TestAgentsReadTheirConfigMap(t *testing.T) {
	t.Parallel()
	docs, err := deploy.Render(deploy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range docs {
		if d.Kind != "ConfigMap" {
			continue
		}
		var o struct {
			Data map[string]string `json:"data"`
		}
		if err := yaml.Unmarshal([]byte(d.Text), &o); err != nil {
			t.Fatal(err)
		}
		var got settings.Settings // empty: what the file does not say shows as a difference
		if err := got.Decode([]byte(o.Data["config.yaml"])); err != nil {
			t.Fatal(err)
		}
		want := settings.Default()
		want.ClusterCIDRs, want.NodePortAddresses, want.LoadBalancerPools = []string{}, []string{}, []string{}
		if diff := cmp.Diff(got, want); diff != "" {
			t.Errorf("the installed configuration differs from the agents' defaults (-installed +default):\n%s", diff)
		}
		keys, err := yaml.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(keys)) {
			if key, _, _ := strings.Cut(line, ":"); !strings.Contains(o.Data["config.yaml"], "\n"+key+": ") {
				t.Errorf("the installed configuration does not have %s", key)
			}
		}
		return
	}
	t.Error("there is no ConfigMap")
}

// TestInstalledAgentsUnderstandTheirFlags: the command lines of the DaemonSet
// are those of this program.
func TestInstalledAgentsUnderstandTheirFlags(t *testing.T) {
	t.Parallel()
	docs, err := deploy.Render(deploy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var lines [][]string
	for _, d := range docs {
		var args []string
		listed := false
		for line := range strings.Lines(d.Text) {
			line = strings.TrimSpace(line)
			item, isItem := strings.CutPrefix(line, "- ")
			switch {
			case line == "args:":
				listed = true
				continue
			case listed && isItem:
				args = append(args, item)
				continue
			case listed:
				lines = append(lines, args)
				if i := slices.Index(args, "netctl"); i > 0 { // what the holder starts
					lines = append(lines, args[i+1:])
				}
				args, listed = nil, false
			}
			if _, list, ok := strings.Cut(line, "command: [netctl, "); ok {
				lines = append(lines, strings.Split(strings.TrimSuffix(list, "]"), ", "))
			}
		}
	}
	if len(lines) != 6 {
		t.Fatalf("command lines %v, want the holder's, its agent's, the agent's and three probes", lines)
	}
	root := newRoot(streams{out: &bytes.Buffer{}, err: &bytes.Buffer{}})
	for _, line := range lines {
		cmd, rest, err := root.Find(line)
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.ParseFlags(rest); err != nil {
			t.Errorf("%v: %v", line, err)
		}
		if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
			t.Errorf("%v: %v", line, err)
		}
	}
}

func TestUninstallNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	code, _, talk := netctl(t, "", "uninstall", "--kubeconfig", filepath.Join(t.TempDir(), "missing"))
	if code != exitFailed || !strings.Contains(talk, "missing") {
		t.Errorf("exit %d, %s", code, talk)
	}
}
