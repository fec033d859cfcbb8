// Package record is what an agent remembers on disk of each pod interface: a file
// each, written whole or not at all. With the address pool it is all that a
// restarted agent needs to take its pods over again.
//
// Tests cut files short and make them unreadable.
package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/datapath"
)

// Record is what is remembered on disk of one pod interface, from before its
// first resource exists until its last one is given back.
type Record struct {
	ContainerID string          `json:"containerID"`
	IfName      string          `json:"ifName"`
	Namespace   string          `json:"podNamespace,omitempty"`
	Pod         string          `json:"podName,omitempty"`
	UID         string          `json:"podUID,omitempty"`
	Netns       string          `json:"netns"`
	NetnsInode  uint64          `json:"netnsInode"`
	Addresses   []netip.Addr    `json:"addresses"`
	IfIndex     int             `json:"ifIndex,omitempty"` // in Netns
	Port        datapath.PortID `json:"port"`
	// HostPorts are ports of the node that lead to the pod.
	HostPorts []cni.PortMapping `json:"hostPorts,omitempty"`
	// Bandwidth is what the runtime asked for, and whether it had that from
	// annotations of the pod: then these decide from the moment they are known.
	Bandwidth cni.Bandwidth `json:"bandwidth,omitzero"`
	Annotated bool          `json:"annotated,omitempty"`
	Ready     bool          `json:"ready"` // ADD was completed
}

// Name is what the port is called: the pod, or the container where the runtime
// told no pod.
func (r *Record) Name() string {
	if r.Pod == "" {
		return r.ContainerID + "/" + r.IfName
	}
	return r.Namespace + "/" + r.Pod
}

// ID returns the attachment that the record is of.
func (r *Record) ID() cni.ID { return cni.ID{ContainerID: r.ContainerID, IfName: r.IfName} }

// Store is a directory of records, one file each, replaced whole.
type Store struct{ dir string }

const (
	recordSuffix  = ".json"
	damagedSuffix = ".damaged"
)

// Open returns the store in a directory, which is made when it is not there.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the directory of port records: %w", err)
	}
	return &Store{dir: dir}, nil
}

func (s *Store) path(containerID, ifName string) (string, error) {
	file := containerID + "@" + ifName + recordSuffix
	if strings.ContainsAny(file, "/\x00") || !filepath.IsLocal(file) {
		return "", fmt.Errorf("container %q, interface %q: not a file name", containerID, ifName)
	}
	return filepath.Join(s.dir, file), nil
}

// Put writes r durably, in place of what was recorded of its interface.
func (s *Store) Put(r *Record) error {
	path, err := s.path(r.ContainerID, r.IfName)
	if err != nil {
		return err
	}
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the record of %s: %w", r.Name(), err)
	}
	if err := renameio.WriteFile(path, data, 0o600, renameio.WithTempDir(s.dir)); err != nil {
		return fmt.Errorf("record port %s: %w", r.Name(), err)
	}
	return nil
}

// Delete forgets an interface, also where its record was set aside; one that is
// not known is forgotten already.
func (s *Store) Delete(containerID, ifName string) error {
	path, err := s.path(containerID, ifName)
	if err != nil {
		return err
	}
	for _, p := range []string{path, path + damagedSuffix} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget port %s/%s: %w", containerID, ifName, err)
		}
	}
	return nil
}

// errDamaged marks a record that says nothing of use.
var errDamaged = errors.New("damaged")

// All returns every record that can be read, and the interfaces of those that
// are damaged. These are set aside under another name until their interface is
// deleted: they must not keep an agent down, but their addresses may be in use.
// The error is about files that could not be read this time, which says nothing
// of their content.
func (s *Store) All() (recs []*Record, damaged []cni.ID, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("list port records: %w", err)
	}
	var errs []error
	for _, e := range entries {
		name, aside := strings.CutSuffix(e.Name(), damagedSuffix)
		base, isRecord := strings.CutSuffix(name, recordSuffix)
		if !isRecord || strings.HasPrefix(base, ".") {
			continue
		}
		path := filepath.Join(s.dir, e.Name())
		r, err := read(path)
		switch {
		case aside || errors.Is(err, errDamaged):
			if !aside {
				errs = append(errs, os.Rename(path, path+damagedSuffix))
			}
			container, ifName, _ := strings.Cut(base, "@")
			damaged = append(damaged, cni.ID{ContainerID: container, IfName: ifName})
		case errors.Is(err, fs.ErrNotExist): // deleted meanwhile
		case err != nil:
			errs = append(errs, err)
		default:
			recs = append(recs, r)
		}
	}
	return recs, damaged, errors.Join(errs...)
}

func read(path string) (*Record, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read port record: %w", err)
	}
	r := new(Record)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("port record %s: %w: %w", path, errDamaged, err)
	}
	if r.ContainerID == "" || r.IfName == "" {
		return nil, fmt.Errorf("port record %s: %w: no container or interface in it", path, errDamaged)
	}
	return r, nil
}
