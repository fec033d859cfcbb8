package oci_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/test/kube/oci"
)

// layout writes a layout with one image under two names.
func layout(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	l, err := oci.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	layer, err := l.Layer(oci.Files(
		oci.Entry{Path: "usr/bin/program", From: program},
		oci.Entry{Path: "program", Link: "usr/bin/program"},
		oci.Entry{Path: "data"},
	))
	if err != nil {
		t.Fatal(err)
	}
	err = l.Add(oci.Image{
		Names:  []string{"docker.io/library/a:latest", "example.com/b:1"},
		Config: oci.Config{Entrypoint: []string{"/program"}}, Layers: []oci.Descriptor{layer},
	})
	if err := errors.Join(err, l.Finish()); err != nil {
		t.Fatal(err)
	}
	return dir
}

func get(t *testing.T, base, path string) (int, []byte) {
	t.Helper()
	answer, err := http.Get(base + path)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, body
}

// TestPull follows an image from its name to the files in its layer, as a
// client of the registry does.
func TestPull(t *testing.T) {
	t.Parallel()
	handler, err := oci.Handler(layout(t))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	defer server.Close()
	for _, path := range []string{"/v2/library/a/manifests/latest", "/v2/library/a/manifests/latest?ns=docker.io", "/v2/b/manifests/1?ns=example.com"} {
		code, body := get(t, server.URL, path)
		if code != http.StatusOK {
			t.Fatalf("%s: status %d", path, code)
		}
		var manifest struct{ Config, Layers json.RawMessage }
		if err := json.Unmarshal(body, &manifest); err != nil {
			t.Fatal(err)
		}
		var layers []oci.Descriptor
		if err := json.Unmarshal(manifest.Layers, &layers); err != nil || len(layers) != 1 {
			t.Fatalf("layers %s: %v", manifest.Layers, err)
		}
		code, layer := get(t, server.URL, "/v2/library/a/blobs/"+layers[0].Digest)
		if code != http.StatusOK || int64(len(layer)) != layers[0].Size {
			t.Fatalf("layer: status %d, %d bytes, want %d", code, len(layer), layers[0].Size)
		}
		if diff := cmp.Diff([]string{"usr/", "usr/bin/", "usr/bin/program=hello", "program->usr/bin/program", "data/"}, list(t, layer)); diff != "" {
			t.Errorf("files of the layer (-want +got):\n%s", diff)
		}
	}
}

func list(t *testing.T, layer []byte) []string {
	t.Helper()
	var out []string
	r := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		switch h.Typeflag {
		case tar.TypeSymlink:
			out = append(out, h.Name+"->"+h.Linkname)
		case tar.TypeReg:
			text, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, h.Name+"="+string(text))
		default:
			out = append(out, h.Name)
		}
	}
}

func TestUnknown(t *testing.T) {
	t.Parallel()
	dir := layout(t)
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("no"), 0o600); err != nil {
		t.Fatal(err)
	}
	handler, err := oci.Handler(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"/v2/library/a/manifests/other",
		"/v2/library/a/manifests/latest?ns=example.com",
		"/v2/library/a/blobs/latest",
		"/v2/library/a/blobs/sha256:0000000000000000000000000000000000000000000000000000000000000000",
		"/v2/library/a/blobs/..%2f..%2fsecret",
		"/v2/a/tags/list",
	} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code == http.StatusOK {
			t.Errorf("%s: status 200 with %q", path, w.Body)
		}
	}
}

// TestSameContentSameDigest: what did not change is not unpacked again.
func TestSameContentSameDigest(t *testing.T) {
	t.Parallel()
	var indexes [2][]byte
	for i := range indexes {
		data, err := os.ReadFile(filepath.Join(layout(t), "index.json"))
		if err != nil {
			t.Fatal(err)
		}
		indexes[i] = data
	}
	if !bytes.Equal(indexes[0], indexes[1]) {
		t.Errorf("two layouts of the same content differ:\n%s\n%s", indexes[0], indexes[1])
	}
}
