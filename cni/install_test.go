package cni_test

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/cni"
)

func installation(t *testing.T, program string) cni.Installation {
	t.Helper()
	dir := t.TempDir()
	return cni.Installation{
		BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"),
		Binary: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(program)), nil },
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func mustInstall(t *testing.T, in cni.Installation) cni.Report {
	t.Helper()
	r, err := cni.Install(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{in.BinDir, in.ConfDir} {
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if strings.HasPrefix(f.Name(), ".") {
				t.Errorf("temporary file %s is left", f.Name())
			}
		}
	}
	return r
}

func TestInstallIsIdempotent(t *testing.T) {
	t.Parallel()
	in := installation(t, "program 1")
	plugin, conf := filepath.Join(in.BinDir, "netctl-cni"), filepath.Join(in.ConfDir, cni.DefaultConfName)
	if diff := cmp.Diff(mustInstall(t, in), cni.Report{BinaryWritten: true, ConflistWritten: true, LoopbackAdded: true}); diff != "" {
		t.Errorf("first (-got +want):\n%s", diff)
	}
	for path, want := range map[string]os.FileMode{plugin: 0o755, conf: 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s: got mode %v, want %v", path, got, want)
		}
	}
	before := []uint64{inode(t, plugin), inode(t, conf)}
	if diff := cmp.Diff(mustInstall(t, in), cni.Report{}); diff != "" {
		t.Errorf("second (-got +want):\n%s", diff)
	}
	if after := []uint64{inode(t, plugin), inode(t, conf)}; !slices.Equal(before, after) {
		t.Error("equal content was written again")
	}
	in.Binary = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("program 22")), nil }
	if diff := cmp.Diff(mustInstall(t, in), cni.Report{BinaryWritten: true}); diff != "" {
		t.Errorf("update (-got +want):\n%s", diff)
	}
	if b, err := os.ReadFile(filepath.Join(in.BinDir, "loopback")); err != nil || string(b) != "program 22" {
		t.Errorf("loopback is %q, %v", b, err)
	}
	for range 2 {
		if _, err := cni.Uninstall(in); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range []string{in.BinDir, in.ConfDir} {
		if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
			t.Errorf("left in %s: %v %v", dir, files, err)
		}
	}
}

func TestInstallLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	in := installation(t, "program")
	for _, dir := range []string{in.BinDir, in.ConfDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	loopback := filepath.Join(in.BinDir, "loopback")
	if err := os.WriteFile(loopback, []byte("foreign"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"00-other.conflist", "00-notes.txt", "10-late.conf"} {
		if err := os.WriteFile(filepath.Join(in.ConfDir, name), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := mustInstall(t, in)
	if r.LoopbackAdded {
		t.Error("foreign loopback plugin was replaced")
	}
	if diff := cmp.Diff(r.Before, []string{"00-other.conflist"}); diff != "" {
		t.Errorf("before (-got +want):\n%s", diff)
	}
	if _, err := cni.Uninstall(in); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(loopback); err != nil || string(b) != "foreign" {
		t.Errorf("foreign loopback plugin after uninstall: %q %v", b, err)
	}
}

func TestInstallOverRunningProgram(t *testing.T) {
	t.Parallel()
	in := installation(t, "new")
	if err := os.MkdirAll(in.BinDir, 0o755); err != nil {
		t.Fatal(err)
	}
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip("no sleep program here")
	}
	content, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	plugin := filepath.Join(in.BinDir, "netctl-cni")
	if err := os.WriteFile(plugin, content, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(plugin, "60")
	cmd.Args[0] = "sleep"
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	mustInstall(t, in)
	if b, err := os.ReadFile(plugin); err != nil || string(b) != "new" {
		t.Errorf("got %.20q %v", b, err)
	}
}

func TestConflist(t *testing.T) {
	t.Parallel()
	first, err := cni.Conflist{}.Render(nil)
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.NetworkConfFromBytes(first)
	if err != nil {
		t.Fatal(err)
	}
	if list.CNIVersion != "1.1.0" || list.Name != "netctl" || !list.LoadOnlyInlinedPlugins || len(list.Plugins) != 1 {
		t.Errorf("libcni reads %+v", list)
	}
	if got := list.Plugins[0].Network; got.Type != "netctl-cni" || !got.Capabilities["io.kubernetes.cri.pod-annotations"] || !got.Capabilities["portMappings"] {
		t.Errorf("libcni reads plugin %+v", got)
	}
	var raw map[string]any
	if err := json.Unmarshal(first, &raw); err != nil || raw["cniVersion"] != "1.0.0" {
		t.Errorf("cniVersion for runtimes without cniVersions: %v %v", raw["cniVersion"], err)
	}

	// A service mesh chains itself; a new socket must not throw it out.
	raw["plugins"] = append(raw["plugins"].([]any), map[string]any{"type": "istio-cni", "x": 1}, map[string]any{"type": "netctl-cni"}, "rubbish")
	chained, err := json.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	second, err := cni.Conflist{Socket: "/run/other/cni.sock"}.Render(chained)
	if err != nil {
		t.Fatal(err)
	}
	if list, err = libcni.NetworkConfFromBytes(second); err != nil {
		t.Fatal(err)
	}
	if len(list.Plugins) != 2 || list.Plugins[1].Network.Type != "istio-cni" || !bytes.Contains(list.Plugins[0].Bytes, []byte("/run/other/cni.sock")) {
		t.Errorf("chained: %s", second)
	}
	third, err := cni.Conflist{Socket: "/run/other/cni.sock"}.Render(second)
	if err != nil || !bytes.Equal(second, third) {
		t.Errorf("rendering again changed it (%v):\n%s", err, third)
	}
	for name, previous := range map[string]string{
		"foreign list": `{"plugins":[{"type":"bridge"},{"type":"portmap"}]}`, "rubbish": "{", "empty": "",
	} {
		if got, err := (cni.Conflist{}).Render([]byte(previous)); err != nil || !bytes.Equal(got, first) {
			t.Errorf("%s: %v\n%s", name, err, got)
		}
	}
	if _, err := (cni.Conflist{Name: "a/b"}).Render(nil); err == nil {
		t.Error("invalid name passed")
	}
}

func TestPluginBinaryIsAProgram(t *testing.T) {
	t.Parallel()
	f, err := cni.PluginBinary()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	magic := make([]byte, 4)
	if _, err := io.ReadFull(f, magic); err != nil || string(magic) != "\x7fELF" {
		t.Errorf("got %q %v, want an ELF file", magic, err)
	}
}
