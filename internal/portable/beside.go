package portable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// beside is where Leave puts what Take finds.
func beside(path string) string { return path + ".portable" }

// Leave writes a stream beside a mapped file, for a successor that cannot map
// it. It is for the end of a process: what is left is of that moment.
func Leave(path string, export func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	if err := errors.Join(export(f), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", beside(path), err), os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), beside(path))
}

// Take reads what Leave wrote, when it is wanted and there is something, and
// deletes it in any case: at the next start it would be old.
func Take(path string, wanted bool, read func(io.Reader) (int, error)) (n int, err error) {
	if wanted {
		f, err := os.Open(beside(path))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return 0, nil
		case err != nil:
			return 0, err
		}
		defer f.Close()
		n, err = read(f)
		if err != nil {
			return n, errors.Join(err, os.Remove(beside(path)))
		}
	}
	if err := os.Remove(beside(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return n, err
	}
	return n, nil
}
