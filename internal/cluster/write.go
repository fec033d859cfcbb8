package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/netctl/netctl/internal/model"
)

// maxBase is how long a file name may get before it is shortened; NAME_MAX is
// 255 and temporary names need some.
const maxBase = 200

// FileName returns the name of the file that WriteObject uses for an object:
// "pod.default.web.yaml". Kinds and namespaces have no dots, so no two objects
// share one; very long names end in a hash instead.
func FileName(kind string, name model.Name) string {
	base := strings.ToLower(kind) + "." + name.Name
	if name.Namespace != "" {
		base = strings.ToLower(kind) + "." + name.Namespace + "." + name.Name
	}
	if len(base) > maxBase {
		sum := sha256.Sum256([]byte(base))
		base = base[:maxBase-17] + "-" + hex.EncodeToString(sum[:8])
	}
	return base + ".yaml"
}

// WriteObject writes an object into a manifest directory, replacing an earlier
// version in one step: a reader sees the old file or the new one. A file that
// says the same already is left alone. The write is not forced to the disk.
func WriteObject(dir string, o Object) error {
	if o.Kind == "" || strings.ContainsAny(o.Kind, "./\x00") || !validName(o.Name.Name) ||
		(o.Name.Namespace != "" && !validName(o.Name.Namespace)) {
		return fmt.Errorf("write %s %s: not a valid object name", o.Kind, o.Name)
	}
	return replaceFile(filepath.Join(dir, FileName(o.Kind, o.Name)), o.Raw, false)
}

// RemoveObject removes what WriteObject wrote. Removing the absent succeeds.
func RemoveObject(dir, kind string, name model.Name) error {
	err := os.Remove(filepath.Join(dir, FileName(kind, name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// nodePatchObject is a partial Node as PublishNode writes it.
type nodePatchObject struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        struct {
		Name        string            `json:"name"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
}

// PublishNode writes an agent's claim beside the manifests, as
// node-<name>.patch.yaml: a partial Node whose annotations are merged over the
// Node of that name. Publishing what is published already changes nothing.
func (d *Directory) PublishNode(_ context.Context, c NodeClaim) error {
	if !validName(c.Node) {
		return fmt.Errorf("publish node %q: not a valid node name", c.Node)
	}
	var o nodePatchObject
	o.APIVersion, o.Kind, o.Metadata.Name = "v1", "Node", c.Node
	o.Metadata.Annotations = claimAnnotations(c)
	data, err := yaml.Marshal(o)
	if err != nil {
		return fmt.Errorf("publish node %s: %w", c.Node, err)
	}
	if err := replaceFile(filepath.Join(d.cfg.Path, "node-"+c.Node+".patch.yaml"), data, false); err != nil {
		return fmt.Errorf("publish node %s: %w", c.Node, err)
	}
	return nil
}

// claimAnnotations renders a claim as the annotations of a Node.
func claimAnnotations(c NodeClaim) map[string]string {
	endpoints := make([]string, len(c.Endpoints))
	for i, e := range c.Endpoints {
		endpoints[i] = e.String()
	}
	return map[string]string{
		annotationPublicKey: c.PublicKey,
		annotationEndpoints: strings.Join(endpoints, ","),
	}
}

// replaceFile writes path in one step through a temporary file beside it.
func replaceFile(path string, data []byte, durable bool) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	tmp, err := writeTemp(path, data, durable)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if durable {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

// writeTemp writes data to a new hidden file in the directory of path. Every
// writer has a file of its own; one that is killed leaves it behind, unread.
func writeTemp(path string, data []byte, durable bool) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return "", err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := f.Chmod(0o644); err != nil {
		return "", err
	}
	if _, err := f.Write(data); err != nil {
		return "", err
	}
	if durable {
		return f.Name(), f.Sync()
	}
	return f.Name(), nil
}

// syncDir forces a directory's entries to the disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
