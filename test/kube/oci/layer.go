package oci

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// Entry is one thing in a layer made by Files.
type Entry struct {
	Path string // from the root of the image, without a leading slash
	From string // the file on this machine that is copied, or
	Link string // what a symbolic link points to, or neither: a directory
	Mode int64  // 0: 0755
}

// Files writes a layer of a few files, with their directories. Use it with
// Layout.Layer.
func Files(entries ...Entry) func(io.Writer) error {
	return func(w io.Writer) error {
		t := tar.NewWriter(w)
		made := map[string]bool{}
		for _, e := range entries {
			if err := directories(t, made, path.Dir(e.Path)); err != nil {
				return err
			}
			if err := add(t, e); err != nil {
				return fmt.Errorf("add /%s: %w", e.Path, err)
			}
		}
		return t.Close()
	}
}

func directories(t *tar.Writer, made map[string]bool, dir string) error {
	if dir == "." || made[dir] {
		return nil
	}
	if err := directories(t, made, path.Dir(dir)); err != nil {
		return err
	}
	made[dir] = true
	return add(t, Entry{Path: dir})
}

func add(t *tar.Writer, e Entry) error {
	if e.Mode == 0 {
		e.Mode = 0o755
	}
	h := &tar.Header{Name: strings.TrimSuffix(e.Path, "/"), Mode: e.Mode, Format: tar.FormatPAX}
	switch {
	case e.Link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
		return t.WriteHeader(h)
	case e.From == "":
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		return t.WriteHeader(h)
	}
	f, err := os.Open(e.From)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}
