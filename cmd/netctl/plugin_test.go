package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// asNetctl makes this test binary netctl itself.
const asNetctl = "NETCTL_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asNetctl) != "" {
		main()
	}
	os.Exit(m.Run())
}

// Called as `netctl cni`, or under the plugin's name, netctl is the plugin.
func TestPlugin(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "netctl-cni")
	if err := os.Symlink(exe, link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
	}{
		{"subcommand", []string{exe, "cni"}},
		{"by its name", []string{link}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			call := func(command, stdin string) (map[string]any, error) {
				cmd := exec.CommandContext(t.Context(), c.args[0], c.args[1:]...)
				cmd.Env = []string{asNetctl + "=1", "CNI_COMMAND=" + command, "CNI_PATH=/", "CNI_CONTAINERID=c", "CNI_IFNAME=eth0", "CNI_NETNS=/proc/self/ns/net"}
				cmd.Stdin = strings.NewReader(stdin)
				out, err := cmd.Output()
				var answer map[string]any
				if jerr := json.Unmarshal(out, &answer); jerr != nil {
					t.Errorf("%s: %v: %s", command, jerr, out)
				}
				return answer, err
			}
			answer, err := call("VERSION", `{"cniVersion":"1.1.0"}`)
			versions, _ := answer["supportedVersions"].([]any)
			if err != nil || !slices.Contains(versions, any("1.1.0")) || !slices.Contains(versions, any("0.3.1")) {
				t.Errorf("VERSION: %v, %v", answer, err)
			}
			answer, err = call("STATUS", `{"cniVersion":"1.1.0","name":"n","type":"netctl-cni","socket":"/no/such.sock"}`)
			if err == nil || answer["code"] != float64(50) || !strings.Contains(answer["msg"].(string), "agent") {
				t.Errorf("STATUS without an agent: %v, %v", answer, err)
			}
			answer, err = call("ADD", `{"cniVersion"`)
			if err == nil || answer["code"] != float64(6) {
				t.Errorf("ADD with half a configuration: %v, %v", answer, err)
			}
		})
	}
}
