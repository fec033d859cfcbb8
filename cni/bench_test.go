package cni_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netctl/netctl/cni"
)

// BenchmarkPlugin measures the plugin program as a runtime runs it, process
// start included, against a Backend that does nothing: what netctl adds to an
// operation before any networking.
func BenchmarkPlugin(b *testing.B) {
	dir, err := os.MkdirTemp("", "cni") //nolint:usetesting // b.TempDir is too long for a socket
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	socket := filepath.Join(dir, "run", "cni.sock")
	s, err := cni.NewServer(cni.Config{Socket: socket, Backend: newAgent(), Logger: quiet()})
	if err != nil {
		b.Fatal(err)
	}
	s.Restored()
	go func() { _ = s.Run(b.Context()) }()
	<-s.Serving()
	ns := exec.Command("sleep", "300")
	ns.SysProcAttr = newNetns()
	if err := ns.Start(); err != nil {
		b.Skipf("network namespaces cannot be created here: %v", err)
	}
	defer func() { _ = ns.Process.Kill(); _ = ns.Wait() }()
	env := attach("bench", fmt.Sprintf("/proc/%d/ns/net", ns.Process.Pid))
	config := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"netctl","type":"netctl-cni","socket":%q}`, socket)

	times := map[string][]time.Duration{}
	for b.Loop() {
		for _, op := range []string{"VERSION", "STATUS", "ADD", "DEL"} {
			var out bytes.Buffer
			cmd := exec.Command(filepath.Join(pluginDir, "netctl-cni"))
			cmd.Env = append([]string{"CNI_COMMAND=" + op, "CNI_PATH=" + pluginDir}, env...)
			cmd.Stdin, cmd.Stdout = strings.NewReader(config), &out
			start := time.Now()
			if err := cmd.Run(); err != nil {
				b.Fatalf("%s: %v %s", op, err, out.String())
			}
			times[op] = append(times[op], time.Since(start))
		}
	}
	for _, op := range []string{"VERSION", "STATUS", "ADD", "DEL"} {
		t := times[op]
		slices.Sort(t)
		name := "cni_plugin_" + strings.ToLower(op)
		fmt.Printf("figure %s_p50 %.2f ms\n", name, t[len(t)/2].Seconds()*1e3)
		fmt.Printf("figure %s_p99 %.2f ms\n", name, t[len(t)*99/100].Seconds()*1e3)
	}
	info, err := os.Stat(filepath.Join(pluginDir, "netctl-cni"))
	if err != nil {
		b.Fatal(err)
	}
	fmt.Printf("figure cni_plugin_size %.2f MB\n", float64(info.Size())/1e6)
}
