// Package oci writes container images without a container engine and serves
// them without a registry: an OCI image layout is a directory of blobs named by
// their SHA-256 and an index. `ctr images import` takes it as a tar, and Handler
// serves the reading half of the registry protocol from it, which is all that a
// pull needs.
//
// Layers are written uncompressed: they never cross a network. Everything is
// written with fixed times and owners, so the same content has the same digest.
package oci

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
)

const (
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar"

	// nameAnnotation is where containerd's import looks for an image's name.
	nameAnnotation = "io.containerd.image.name"
)

// Descriptor points to a blob.
type Descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Config is how an image is run.
type Config struct {
	User       string   `json:"User,omitempty"`
	Env        []string `json:"Env,omitempty"`
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Cmd        []string `json:"Cmd,omitempty"`
}

// Image is an image under all its names, such as "docker.io/library/nginx:latest".
type Image struct {
	Names  []string
	Config Config
	Layers []Descriptor
}

// Layout is an image layout that is being written.
type Layout struct {
	dir       string
	manifests []Descriptor
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []Descriptor `json:"manifests"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        Descriptor   `json:"config"`
	Layers        []Descriptor `json:"layers"`
}

type imageConfig struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Config       Config `json:"config"`
	RootFS       struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// Create starts a layout in a directory that does not exist yet.
func Create(dir string) (*Layout, error) {
	if err := os.MkdirAll(blobs(dir), 0o755); err != nil {
		return nil, fmt.Errorf("create the image layout: %w", err)
	}
	return &Layout{dir: dir}, nil
}

func blobs(dir string) string { return filepath.Join(dir, "blobs", "sha256") }

// Layer adds a layer: write gets the tar's destination.
func (l *Layout) Layer(write func(io.Writer) error) (Descriptor, error) {
	f, err := os.CreateTemp(l.dir, "layer")
	if err != nil {
		return Descriptor{}, fmt.Errorf("create a layer: %w", err)
	}
	defer os.Remove(f.Name()) // gone already when all went well
	sum := sha256.New()
	count := &counter{}
	if err := errors.Join(write(io.MultiWriter(f, sum, count)), f.Close()); err != nil {
		return Descriptor{}, fmt.Errorf("write a layer: %w", err)
	}
	digest := hex.EncodeToString(sum.Sum(nil))
	if err := os.Rename(f.Name(), filepath.Join(blobs(l.dir), digest)); err != nil {
		return Descriptor{}, fmt.Errorf("add a layer: %w", err)
	}
	return Descriptor{MediaType: mediaLayer, Digest: "sha256:" + digest, Size: count.n}, nil
}

// Add adds an image of layers that were added before.
func (l *Layout) Add(image Image) error {
	c := imageConfig{Architecture: runtime.GOARCH, OS: "linux", Config: image.Config}
	c.RootFS.Type = "layers"
	for _, layer := range image.Layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, layer.Digest) // the same: layers are not compressed
	}
	config, err := l.json(mediaConfig, c)
	if err != nil {
		return err
	}
	m, err := l.json(mediaManifest, manifest{SchemaVersion: 2, MediaType: mediaManifest, Config: config, Layers: image.Layers})
	if err != nil {
		return err
	}
	for _, name := range image.Names {
		m.Annotations = map[string]string{nameAnnotation: name}
		l.manifests = append(l.manifests, m)
	}
	return nil
}

// Finish writes the index. The layout is complete only then.
func (l *Layout) Finish() error {
	data, err := json.Marshal(index{SchemaVersion: 2, MediaType: mediaIndex, Manifests: l.manifests})
	if err != nil {
		return fmt.Errorf("write the image index: %w", err)
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(l.dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644), //nolint:gosec // not a secret
		os.WriteFile(filepath.Join(l.dir, "index.json"), data, 0o644),                                     //nolint:gosec // not a secret
	)
	if err != nil {
		return fmt.Errorf("write the image index: %w", err)
	}
	return nil
}

func (l *Layout) json(mediaType string, v any) (Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return Descriptor{}, fmt.Errorf("write %s: %w", mediaType, err)
	}
	sum := sha256.Sum256(data)
	digest := hex.EncodeToString(sum[:])
	if err := os.WriteFile(filepath.Join(blobs(l.dir), digest), data, 0o644); err != nil { //nolint:gosec // not a secret
		return Descriptor{}, fmt.Errorf("write %s: %w", mediaType, err)
	}
	return Descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: int64(len(data))}, nil
}

// counter counts the bytes that are written to it.
type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}
