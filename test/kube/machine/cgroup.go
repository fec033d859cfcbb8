package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const cgroupRoot = "/sys/fs/cgroup"

// hierarchies lists the roots of the cgroup hierarchies: one with cgroup v2, one
// per controller with v1.
func hierarchies() ([]string, error) {
	if _, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers")); err == nil {
		return []string{cgroupRoot}, nil
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() { // the rest are links to controllers that share a hierarchy
			out = append(out, filepath.Join(cgroupRoot, e.Name()))
		}
	}
	return out, nil
}

// createCgroups makes the machine's cgroup in every hierarchy and returns their
// paths. In a cgroup namespace of its own the machine takes them for the roots.
func (m *Machine) createCgroups() (roots []string, err error) {
	roots, err = hierarchies()
	if err != nil {
		return nil, err
	}
	for _, root := range roots {
		if err := createCgroup(root, m.Cgroup); err != nil {
			return nil, fmt.Errorf("create the cgroup of %s: %w", m.Name, err)
		}
	}
	return roots, nil
}

// createCgroup makes a cgroup and those above it. With cgroup v1 a new cpuset is
// empty, and nobody can join it before it has what its parent has.
func createCgroup(root, path string) error {
	dir := root
	for element := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		parent := dir
		dir = filepath.Join(dir, element)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			have, err := os.ReadFile(filepath.Join(parent, file))
			if err != nil {
				continue // not this hierarchy
			}
			if err := os.WriteFile(filepath.Join(dir, file), have, 0o644); err != nil { //nolint:gosec // a control file
				return err
			}
		}
	}
	return nil
}

// RemoveCgroups removes a cgroup and what is below it in every hierarchy. The
// kernel refuses while a process in it still ends, so it tries for a while.
func RemoveCgroups(cgroup string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(killWait)
	for _, root := range roots {
		for {
			err := removeTree(filepath.Join(root, cgroup))
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("remove cgroup %s: %w", cgroup, err)
			}
			<-time.After(poll)
		}
	}
	return nil
}

// removeTree removes a cgroup and those below it, the lowest first. Only the
// directories can be removed; their files go with them.
func removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, d := range slices.Backward(dirs) {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
