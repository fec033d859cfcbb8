package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/netctl/netctl/internal/cluster"
)

// readManifests reads files, directories with all below them, and standard
// input for "-". A directory without any object is a mistake.
func readManifests(names []string, stdin io.Reader) ([]cluster.Object, error) {
	var out []cluster.Object
	for _, name := range names {
		paths, err := manifestPaths(name)
		if err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		before := len(out)
		for _, p := range paths {
			objects, err := readManifest(p, stdin)
			if err != nil {
				return nil, err
			}
			out = append(out, objects...)
		}
		if len(out) == before {
			return nil, fmt.Errorf("read manifests: no object in %s; manifests are *.yaml, *.yml and *.json files", name)
		}
	}
	return out, nil
}

// manifestPaths lists the manifest files of a name, in lexical order.
func manifestPaths(name string) ([]string, error) {
	if name == "-" {
		return []string{name}, nil
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{name}, nil
	}
	var out []string
	err = filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)) {
			out = append(out, path)
		}
		return err
	})
	return out, err
}

func readManifest(path string, stdin io.Reader) ([]cluster.Object, error) {
	var data []byte
	var err error
	if path == "-" {
		data, err = io.ReadAll(stdin)
	} else {
		data, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	objects, err := cluster.ParseManifests(data, path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	return objects, nil
}
