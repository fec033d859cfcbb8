package oci

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Handler serves the images of a layout to those who pull by name, for every
// registry at once: a client that uses it as a mirror says in ?ns= which
// registry it means. It answers 404 for what it does not have and never writes.
func Handler(dir string) (http.Handler, error) {
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return nil, fmt.Errorf("read the image index: %w", err)
	}
	var i index
	if err := json.Unmarshal(data, &i); err != nil {
		return nil, fmt.Errorf("read the image index: %w", err)
	}
	r := &registry{dir: dir, names: map[string]Descriptor{}}
	for _, m := range i.Manifests {
		r.names[m.Annotations[nameAnnotation]] = m
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/", r.serve)
	return mux, nil
}

type registry struct {
	dir   string
	names map[string]Descriptor
}

// request is /v2/REPOSITORY/manifests/TAG-OR-DIGEST or /v2/REPOSITORY/blobs/DIGEST.
var (
	request = regexp.MustCompile(`^/v2/([a-z0-9._/-]+)/(manifests|blobs)/([A-Za-z0-9._:-]+)$`)
	digest  = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

func (r *registry) serve(w http.ResponseWriter, q *http.Request) {
	if q.URL.Path == "/v2/" {
		return // "yes, this is a registry"
	}
	m := request.FindStringSubmatch(q.URL.Path)
	if m == nil {
		http.NotFound(w, q)
		return
	}
	repository, kind, reference := m[1], m[2], m[3]
	if !digest.MatchString(reference) {
		host := q.URL.Query().Get("ns")
		if host == "" {
			host = "docker.io"
		}
		found, ok := r.names[host+"/"+repository+":"+reference]
		if kind != "manifests" || !ok {
			http.NotFound(w, q)
			return
		}
		reference = found.Digest
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if kind == "manifests" {
		w.Header().Set("Content-Type", mediaManifest)
	}
	w.Header().Set("Docker-Content-Digest", reference)
	http.ServeFile(w, q, filepath.Join(blobs(r.dir), strings.TrimPrefix(reference, "sha256:")))
}
