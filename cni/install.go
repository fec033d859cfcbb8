package cni

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/netctl/netctl/cni/shim"
)

// Paths that container runtimes use unless they are told otherwise.
const (
	DefaultBinDir   = "/opt/cni/bin"
	DefaultConfDir  = "/etc/cni/net.d"
	DefaultConfName = "05-netctl.conflist"
)

// maxConflist bounds what is read back of a conflist.
const maxConflist = 1 << 20

// Installation says where the plugin and the network configuration go.
type Installation struct {
	BinDir, ConfDir string // empty: the defaults
	// ConfName sorts before other files: runtimes take the first one.
	ConfName string // empty: DefaultConfName
	Conflist Conflist
	// Binary opens the program to install; nil means PluginBinary.
	Binary func() (io.ReadCloser, error)
}

// Report says what Install did.
type Report struct {
	BinaryWritten, ConflistWritten, LoopbackAdded bool
	// Before are configurations of others that a runtime reads instead of
	// ours, because they sort before it.
	Before []string
}

func (in *Installation) defaults() {
	if in.BinDir == "" {
		in.BinDir = DefaultBinDir
	}
	if in.ConfDir == "" {
		in.ConfDir = DefaultConfDir
	}
	if in.ConfName == "" {
		in.ConfName = DefaultConfName
	}
	if in.Binary == nil {
		in.Binary = PluginBinary
	}
}

// Install makes the node use netctl: the program, the loopback plugin where
// there is none, and last the configuration, which the runtime acts on at
// once. So it is called when the Server is Serving. It is idempotent, and what
// is equal already is not touched, because a runtime reloads on every event
// and stops the world for it. Every file appears complete under its name: it
// is written beside its place and renamed, in the same directory, because
// runtimes do not notice a file that is moved in from another one, and because
// a program that is running cannot be overwritten.
func Install(in Installation) (Report, error) {
	in.defaults()
	var r Report
	var err error
	if r.BinaryWritten, err = in.installBinary(); err != nil {
		return r, err
	}
	if r.LoopbackAdded, err = in.installLoopback(); err != nil {
		return r, err
	}
	if r.ConflistWritten, err = in.installConflist(); err != nil {
		return r, err
	}
	r.Before, err = in.before()
	return r, err
}

// Uninstall takes back what Install made, the configuration first, and leaves
// everything of others. It returns the files that it removed; what is not there is
// no error.
func Uninstall(in Installation) (removed []string, err error) {
	in.defaults()
	loopback := filepath.Join(in.BinDir, shim.LoopbackName)
	paths := []string{filepath.Join(in.ConfDir, in.ConfName)}
	if target, err := os.Readlink(loopback); err == nil && target == shim.PluginName {
		paths = append(paths, loopback)
	}
	paths = append(paths, filepath.Join(in.BinDir, shim.PluginName))
	for _, path := range []string{paths[0], paths[len(paths)-1]} {
		paths = append(paths, temporary(path)) // of a writer that was killed
	}
	var errs []error
	for _, path := range paths {
		err := os.Remove(path)
		switch {
		case err == nil:
			removed = append(removed, path)
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, fmt.Errorf("uninstall cni: %w", err))
		}
	}
	return removed, errors.Join(errs...)
}

func (in *Installation) installBinary() (bool, error) {
	path := filepath.Join(in.BinDir, shim.PluginName)
	same, err := in.sameBinary(path)
	if err != nil || same {
		return false, err
	}
	src, err := in.Binary()
	if err != nil {
		return false, err
	}
	defer func() { _ = src.Close() }()
	if err := os.MkdirAll(in.BinDir, 0o755); err != nil {
		return false, fmt.Errorf("install cni plugin: %w", err)
	}
	if err := writeBeside(path, src, 0o755); err != nil {
		return false, fmt.Errorf("install cni plugin: %w", err)
	}
	return true, nil
}

// sameBinary reports whether path holds the program already.
func (in *Installation) sameBinary(path string) (bool, error) {
	have, err := os.Open(path)
	if err != nil {
		return false, nil // whatever it is, it is replaced
	}
	defer func() { _ = have.Close() }()
	info, err := have.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o755 {
		return false, nil // as above
	}
	want, err := in.Binary()
	if err != nil {
		return false, err
	}
	defer func() { _ = want.Close() }()
	return sameContent(have, want)
}

func sameContent(a, b io.Reader) (bool, error) {
	const chunk = 64 << 10
	x, y := make([]byte, chunk), make([]byte, chunk)
	for {
		n, aerr := io.ReadFull(a, x)
		m, berr := io.ReadFull(b, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		aend, bend := isEnd(aerr), isEnd(berr)
		if aend && bend {
			return true, nil
		}
		if (aerr != nil && !aend) || (berr != nil && !bend) {
			return false, fmt.Errorf("compare cni plugin: %w", errors.Join(aerr, berr))
		}
		if aend != bend {
			return false, nil
		}
	}
}

func isEnd(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// installLoopback makes the program answer as "loopback" where the node has no
// such plugin. The link says whose it is, and an update of the program is one
// of the link as well.
func (in *Installation) installLoopback() (bool, error) {
	err := os.Symlink(shim.PluginName, filepath.Join(in.BinDir, shim.LoopbackName))
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("install loopback plugin: %w", err)
	}
	return true, nil
}

func (in *Installation) installConflist() (bool, error) {
	path := filepath.Join(in.ConfDir, in.ConfName)
	have, err := readBounded(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("install conflist: %w", err)
	}
	want, err := in.Conflist.Render(have)
	if err != nil {
		return false, err
	}
	if bytes.Equal(have, want) {
		return false, nil
	}
	if err := os.MkdirAll(in.ConfDir, 0o755); err != nil {
		return false, fmt.Errorf("install conflist: %w", err)
	}
	if err := writeBeside(path, bytes.NewReader(want), 0o600); err != nil {
		return false, fmt.Errorf("install conflist: %w", err)
	}
	return true, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, maxConflist))
}

// before lists the configurations that win over ours.
func (in *Installation) before() ([]string, error) {
	files, err := os.ReadDir(in.ConfDir) // sorted by name, as runtimes sort
	if err != nil {
		return nil, fmt.Errorf("read cni configurations: %w", err)
	}
	var out []string
	for _, f := range files {
		if f.Name() < in.ConfName && !f.IsDir() && slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(f.Name())) {
			out = append(out, f.Name())
		}
	}
	return out, nil
}

// temporary is the name of a file until it is complete.
func temporary(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".netctl-new")
}

// writeBeside writes a file under a temporary name in the same directory, one
// that no runtime reads, makes it durable and renames it into place. What a
// killed writer left behind is overwritten by the next one.
func writeBeside(path string, src io.Reader, mode fs.FileMode) (err error) {
	temp := temporary(path)
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp)
		}
	}()
	_, err = io.Copy(f, src)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(temp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
