package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// layout is an archive as a reader of the OCI specification sees it.
type layout struct {
	t     *testing.T
	files map[string][]byte
}

func readLayout(t *testing.T, r io.Reader) layout {
	t.Helper()
	l := layout{t: t, files: map[string][]byte{}}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := l.files[h.Name]; twice || h.Uid != 0 || h.Gid != 0 || h.Uname != "" {
			t.Errorf("%s is there twice or somebody's: %+v", h.Name, h)
		}
		l.files[h.Name] = data
	}
	for name, data := range l.files {
		if digest, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && digest != hexSum(data) {
			t.Errorf("%s has the digest %s", name, hexSum(data))
		}
	}
	return l
}

func hexSum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// blob returns what a descriptor speaks of, which must be there and as long as
// it says.
func (l layout) blob(d descriptor) []byte {
	l.t.Helper()
	data, ok := l.files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
	if !ok || len(data) != d.Size {
		l.t.Fatalf("%s is %d bytes, there: %t; want %d", d.Digest, len(data), ok, d.Size)
	}
	return data
}

func decode[T any](t *testing.T, data []byte) T {
	t.Helper()
	var v T
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// top returns the descriptor of the index of all platforms.
func (l layout) top() descriptor {
	l.t.Helper()
	if got := string(l.files["oci-layout"]); got != `{"imageLayoutVersion":"1.0.0"}` {
		l.t.Errorf("oci-layout %s", got)
	}
	list := decode[index](l.t, l.files["index.json"]).Manifests
	if len(list) != 1 || list[0].MediaType != typeIndex {
		l.t.Fatalf("index.json names %+v, want one index", list)
	}
	return list[0]
}

// entry is a file of the image.
type entry struct {
	Mode int64
	Link string
	Data string
}

func (l layout) unpack(d descriptor) (files map[string]entry, diffID string) {
	l.t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(l.blob(d)))
	if err != nil {
		l.t.Fatal(err)
	}
	plain, err := io.ReadAll(zip)
	if err != nil {
		l.t.Fatal(err)
	}
	files = map[string]entry{}
	for tr := tar.NewReader(bytes.NewReader(plain)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, "sha256:" + hexSum(plain)
		}
		if err != nil {
			l.t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			l.t.Fatal(err)
		}
		files[h.Name] = entry{Mode: h.Mode, Link: h.Linkname, Data: string(data)}
	}
}

func TestArchive(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	im := Image{Reference: "registry.example/netctl:v9", Version: "v9-test", Created: time.Unix(1_000_000_000, 0).UTC()}
	for _, arch := range []string{"amd64", "arm64"} {
		binary := filepath.Join(dir, arch)
		if err := os.WriteFile(binary, []byte("program for "+arch), 0o600); err != nil {
			t.Fatal(err)
		}
		im.Platforms = append(im.Platforms, Platform{Arch: arch, Binary: binary})
	}
	var first, second bytes.Buffer
	for _, b := range []*bytes.Buffer{&first, &second} {
		if err := im.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same image twice is not the same archive")
	}
	l := readLayout(t, &first)
	top := l.top()
	if diff := cmp.Diff(top.Annotations, map[string]string{
		"io.containerd.image.name": im.Reference, "org.opencontainers.image.ref.name": im.Reference,
	}); diff != "" {
		t.Errorf("annotations differ (-got +want):\n%s", diff)
	}
	platforms := decode[index](t, l.blob(top)).Manifests
	if len(platforms) != 2 {
		t.Fatalf("%d platforms, want two", len(platforms))
	}
	for i, arch := range []string{"amd64", "arm64"} {
		if diff := cmp.Diff(platforms[i].Platform, &platform{Architecture: arch, OS: "linux"}); diff != "" {
			t.Errorf("platform differs (-got +want):\n%s", diff)
		}
		m := decode[manifest](t, l.blob(platforms[i]))
		files, diffID := l.unpack(m.Layers[0])
		if diff := cmp.Diff(files, map[string]entry{
			"run/": {Mode: 0o755}, "usr/": {Mode: 0o755}, "usr/local/": {Mode: 0o755}, "usr/local/bin/": {Mode: 0o755},
			"usr/local/bin/netctl": {Mode: 0o755, Data: "program for " + arch},
			"var/":                 {Mode: 0o755}, "var/run": {Mode: 0o777, Link: "../run"},
		}); diff != "" {
			t.Errorf("%s: files differ (-got +want):\n%s", arch, diff)
		}
		c := decode[config](t, l.blob(m.Config))
		if c.Architecture != arch || c.OS != "linux" || !c.Created.Equal(im.Created) || c.RootFS.DiffIDs[0] != diffID ||
			!cmp.Equal(c.Config.Entrypoint, []string{"/usr/local/bin/netctl"}) || !cmp.Equal(c.Config.Env, []string{"PATH=/usr/local/bin"}) ||
			c.Config.Labels["org.opencontainers.image.version"] != "v9-test" {
			t.Errorf("%s: config %+v, layer %s", arch, c, diffID)
		}
	}
	if want := 2 + 1 + 3*2; len(l.files) != want {
		t.Errorf("%d files in the archive, want %d", len(l.files), want)
	}
}

// TestWriteFileLeavesNothing: an archive that cannot be written does not
// disturb the one that is there.
func TestWriteFileLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "image.tar")
	if err := os.WriteFile(path, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	im := Image{Reference: "a:b", Platforms: []Platform{{Arch: "amd64", Binary: filepath.Join(dir, "missing")}}}
	if err := im.WriteFile(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("error %v, want that a file is missing", err)
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(path); len(list) != 1 || string(data) != "before" || err != nil {
		t.Errorf("%d files, the archive is %q, %v", len(list), data, err)
	}
}

// TestBuiltImage looks at what `make image` has left, if it has.
func TestBuiltImage(t *testing.T) {
	t.Parallel()
	f, err := os.Open("../../dist/netctl-image.tar")
	if err != nil {
		t.Skip("there is no dist/netctl-image.tar; `make image` makes it")
	}
	defer f.Close()
	l := readLayout(t, f)
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	for _, d := range decode[index](t, l.blob(l.top())).Manifests {
		m := decode[manifest](t, l.blob(d))
		files, _ := l.unpack(m.Layers[0])
		program := files[entrypoint[1:]].Data
		binary, err := elf.NewFile(strings.NewReader(program))
		if err != nil {
			t.Fatal(err)
		}
		if binary.Machine != machines[d.Platform.Architecture] {
			t.Errorf("%s: the binary is for %v", d.Platform.Architecture, binary.Machine)
		}
		if libraries, err := binary.ImportedLibraries(); err != nil || len(libraries) > 0 || binary.Section(".interp") != nil {
			t.Errorf("%s: the binary is not static: %v, %v", d.Platform.Architecture, libraries, err)
		}
		// The plugin that is embedded is for the same machine as what embeds it.
		plugins := 0
		for rest := program[1:]; ; {
			i := strings.Index(rest, "\x7fELF\x02\x01\x01")
			if i < 0 {
				break
			}
			rest = rest[i:]
			if plugin, err := elf.NewFile(strings.NewReader(rest)); err == nil && plugin.Type == elf.ET_EXEC {
				plugins++
				if plugin.Machine != binary.Machine {
					t.Errorf("%s: the embedded plugin is for %v", d.Platform.Architecture, plugin.Machine)
				}
			}
			rest = rest[4:]
		}
		if plugins != 1 {
			t.Errorf("%s: %d programs are embedded, want the CNI plugin", d.Platform.Architecture, plugins)
		}
	}
}

func TestEpoch(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{"": 0, "1700000000": 1_700_000_000} {
		if got, err := epoch(text); err != nil || got.Unix() != want {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	if _, err := epoch("yesterday"); err == nil {
		t.Error("yesterday is no error")
	}
}
