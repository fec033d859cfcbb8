// Package cleanup takes everything that an agent made away from a node: what the
// container runtime was told, pods' interfaces, netctl0 with the routes to it, the
// records and the node's key. It is for nodes on which no agent runs any more.
//
// The order is that of harm: first nothing new may begin, then what works for
// pods ends, then what is known of them is forgotten, so that a run that is cut
// off can be repeated. What is not there is no error.
package cleanup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/agent/estate"
	"github.com/netctl/netctl/internal/agent/handover"
	"github.com/netctl/netctl/internal/agent/record"
	"github.com/netctl/netctl/internal/kernel"
)

// Config says what a node has of netctl.
type Config struct {
	Install           cni.Installation
	StateDir, DataDir string
	Interface         string            // the node's own, "netctl0"
	Force             bool              // although an agent runs
	Removed           func(what string) // is told of each thing that was removed
}

// ErrServed is returned when an agent runs, which would make everything anew.
var ErrServed = errors.New("an agent runs on this node and would undo this")

// Run removes everything and goes on after errors, which are joined. No agent can
// begin to serve meanwhile.
func Run(cfg Config) (err error) {
	if !cfg.Force && estate.Watched(filepath.Join(cfg.StateDir, estate.HoldersDir)) {
		return ErrServed // as soon as the one that died is replaced
	}
	release, err := handover.Hold(cfg.StateDir)
	switch {
	case errors.Is(err, handover.ErrTaken) && cfg.Force:
	case errors.Is(err, handover.ErrTaken):
		return ErrServed
	case err != nil:
		return err
	default:
		defer func() { err = errors.Join(err, release()) }()
	}
	files, err := cni.Uninstall(cfg.Install)
	for _, f := range files {
		cfg.Removed(f)
	}
	errs := []error{err, cfg.pods(), cfg.node()}
	for _, dir := range []string{cfg.DataDir, cfg.StateDir} { // the seat is in the last one
		errs = append(errs, cfg.directory(dir))
	}
	return errors.Join(errs...)
}

// pods removes the interfaces of pods that run. Without an agent they lead
// nowhere, and no other network can give the pod one of that name.
func (cfg *Config) pods() error {
	dir := filepath.Join(cfg.StateDir, "ports")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	records, err := record.Open(dir)
	if err != nil {
		return err
	}
	list, _, err := records.All()
	errs := []error{err}
	for _, r := range list {
		ns, err := kernel.OpenNamespace(r.Netns)
		if err != nil {
			continue // the pod is gone, and its interface with it
		}
		if _, inode := ns.Inode(); inode == r.NetnsInode {
			errs = append(errs, cfg.device(ns, r.IfName, fmt.Sprintf("%s of pod %s, which has no network until it is made anew", r.IfName, r.Name())))
		}
		errs = append(errs, ns.Close())
	}
	return errors.Join(errs...)
}

// node removes the node's interface and whatever route of ours did not end with it.
func (cfg *Config) node() error {
	err := cfg.device(nil, cfg.Interface, "interface "+cfg.Interface)
	routes, rerr := kernel.RemoveOwnRoutes()
	for _, r := range routes {
		cfg.Removed("route to " + r.Dst.String())
	}
	return errors.Join(err, rerr)
}

// device removes a TUN; an interface of another kind is not ours.
func (cfg *Config) device(ns *kernel.Namespace, name, what string) error {
	found, err := kernel.Describe(ns, name)
	if errors.Is(err, kernel.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if found.Kind != "tun" {
		return fmt.Errorf("%s is no TUN device, so it is not netctl's and stays", what)
	}
	if err := kernel.DeleteInterface(ns, name); err != nil {
		return err
	}
	cfg.Removed(what)
	return nil
}

// directory removes a directory with all that is in it. One that is mounted here
// is emptied: its name is the mount's.
func (cfg *Config) directory(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	err := emptyDirectory(dir)
	if err == nil {
		err = os.RemoveAll(dir) // the lock's file with it
	}
	if errors.Is(err, syscall.EBUSY) {
		if left, lerr := os.ReadDir(dir); lerr == nil && len(left) == 0 {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	cfg.Removed("directory " + dir)
	return nil
}

// emptyDirectory removes what is in a directory but the agent's lock, which holds
// only while its file has a name.
func emptyDirectory(dir string) error {
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, e := range entries {
		if !handover.IsLock(e.Name()) {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
