package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// The media types of the OCI image specification, version 1.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// entrypoint is where the binary lies in the image.
const entrypoint = "/usr/local/bin/netctl"

// Image is what is packed.
//
//	index.json -> index (all platforms) -> manifest (one platform) -> config, layer
type Image struct {
	Reference string // the name under which it is imported
	Version   string
	Created   time.Time
	Platforms []Platform
}

// Platform is the binary for one architecture.
type Platform struct {
	Arch   string // as GOARCH and OCI name it
	Binary string // path
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type config struct {
	Created      time.Time `json:"created"`
	Architecture string    `json:"architecture"`
	OS           string    `json:"os"`
	Config       struct {
		Env        []string          `json:"Env"`
		Entrypoint []string          `json:"Entrypoint"`
		Labels     map[string]string `json:"Labels"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// WriteFile writes the archive, complete or not at all.
func (im Image) WriteFile(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".image-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails when it was renamed, which is as it should be
	err = im.Write(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Chmod(f.Name(), 0o644)
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Write writes the archive.
func (im Image) Write(w io.Writer) error {
	a := archive{tar: tar.NewWriter(w), created: im.Created}
	a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	platforms := index{SchemaVersion: 2, MediaType: typeIndex}
	for _, p := range im.Platforms {
		d, err := im.platform(&a, p)
		if err != nil {
			return err
		}
		platforms.Manifests = append(platforms.Manifests, d)
	}
	top := a.object(typeIndex, platforms)
	// containerd names an imported image after the first, everyone else after
	// the second.
	top.Annotations = map[string]string{
		"io.containerd.image.name":          im.Reference,
		"org.opencontainers.image.ref.name": im.Reference,
	}
	data, err := json.Marshal(index{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{top}})
	if err != nil {
		return err
	}
	a.file("index.json", data)
	if a.err != nil {
		return a.err
	}
	return a.tar.Close()
}

// platform adds the blobs of one platform and returns its manifest.
func (im Image) platform(a *archive, p Platform) (descriptor, error) {
	layer, diffID, err := im.layer(p.Binary)
	if err != nil {
		return descriptor{}, err
	}
	c := config{Created: im.Created, Architecture: p.Arch, OS: "linux"}
	c.Config.Env = []string{"PATH=" + filepath.Dir(entrypoint)}
	c.Config.Entrypoint = []string{entrypoint}
	c.Config.Labels = map[string]string{
		"org.opencontainers.image.title":    "netctl",
		"org.opencontainers.image.version":  im.Version,
		"org.opencontainers.image.source":   "https://github.com/netctl/netctl",
		"org.opencontainers.image.licenses": "Apache-2.0",
	}
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", []string{diffID}
	d := a.object(typeManifest, manifest{
		SchemaVersion: 2, MediaType: typeManifest,
		Config: a.object(typeConfig, c), Layers: []descriptor{a.blob(typeLayer, layer)},
	})
	d.Platform = &platform{Architecture: p.Arch, OS: "linux"}
	return d, a.err
}

// layer packs the image's files and returns them with the digest of the
// unpacked layer. Besides the binary there is only what every image has: runtimes
// make the directories that they mount on.
func (im Image) layer(binary string) (packed []byte, diffID string, err error) {
	data, err := os.ReadFile(binary)
	if err != nil {
		return nil, "", err
	}
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	hash := sha256.New()
	t := tar.NewWriter(io.MultiWriter(zip, hash))
	for _, h := range []tar.Header{
		{Name: "run/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "usr/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "usr/local/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "usr/local/bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: entrypoint[1:], Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(data))},
		{Name: "var/", Typeflag: tar.TypeDir, Mode: 0o755},
		// Where runtimes name pods' namespaces, and ServiceAccount tokens are.
		{Name: "var/run", Typeflag: tar.TypeSymlink, Linkname: "../run", Mode: 0o777},
	} {
		h.ModTime = im.Created
		if err := t.WriteHeader(&h); err != nil {
			return nil, "", err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if _, err := t.Write(data); err != nil {
			return nil, "", err
		}
	}
	if err := t.Close(); err != nil {
		return nil, "", err
	}
	if err := zip.Close(); err != nil {
		return nil, "", err
	}
	return out.Bytes(), "sha256:" + hex.EncodeToString(hash.Sum(nil)), nil
}

// archive is a tar of blobs. The first error stays; what follows it does
// nothing.
type archive struct {
	tar     *tar.Writer
	created time.Time
	err     error
}

func (a *archive) file(name string, data []byte) {
	if a.err != nil {
		return
	}
	h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data)), ModTime: a.created}
	if a.err = a.tar.WriteHeader(h); a.err == nil {
		_, a.err = a.tar.Write(data)
	}
}

func (a *archive) blob(mediaType string, data []byte) descriptor {
	sum := sha256.Sum256(data)
	digest := hex.EncodeToString(sum[:])
	a.file("blobs/sha256/"+digest, data)
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: len(data)}
}

func (a *archive) object(mediaType string, v any) descriptor {
	data, err := json.Marshal(v)
	if err != nil && a.err == nil {
		a.err = err
	}
	return a.blob(mediaType, data)
}
