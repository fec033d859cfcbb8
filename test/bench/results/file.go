package results

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Write writes results into a file, a line each. Those of other names that it has
// already stay: the parts of a suite may run one by one.
func Write(path string, add []Result) error {
	all, err := Read(path)
	if err != nil {
		return err
	}
	for _, r := range add {
		if i := slices.IndexFunc(all, func(o Result) bool { return o.Name == r.Name }); i >= 0 {
			all[i] = r
		} else {
			all = append(all, r)
		}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, r := range all {
		if err := enc.Encode(r); err != nil {
			return fmt.Errorf("write %s: %w", r.Name, err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil { //nolint:gosec // for everybody
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// Read reads them; a file that is not there has none.
func Read(path string) ([]Result, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	var out []Result
	for line := range bytes.Lines(data) {
		var r Result
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("read results in %s: %w; remove it", path, err)
		}
		out = append(out, r)
	}
	return out, nil
}
