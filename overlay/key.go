package overlay

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

const (
	keyLen     = 32
	keyTextLen = 44 // base64 of 32 bytes
	// maxKeyFile bounds what is read of a key file; a right one has 45 bytes.
	maxKeyFile = 1 << 10
)

// Key is a Curve25519 public key. Its text is base64, as WireGuard's tools
// write it. The zero Key is no key.
type Key [keyLen]byte

// ParseKey reads a public key from its text.
func ParseKey(s string) (Key, error) {
	b, err := decodeKey(s)
	return Key(b), err
}

func decodeKey(s string) (b [keyLen]byte, err error) {
	if len(s) != keyTextLen {
		return b, fmt.Errorf("key has %d characters, want %d of base64", len(s), keyTextLen)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(raw) != keyLen {
		return b, errors.New("key is not base64 of 32 bytes")
	}
	b = [keyLen]byte(raw)
	if b == [keyLen]byte{} {
		return b, errors.New("key is all zero")
	}
	return b, nil
}

// String returns the key's text.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// IsZero reports whether k is no key.
func (k Key) IsZero() bool { return k == Key{} }

// MarshalText implements encoding.TextMarshaler.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// PrivateKey is a node's secret. It prints as a placeholder everywhere, so
// that it cannot get into a log. The zero PrivateKey is no key.
type PrivateKey struct{ secret [keyLen]byte }

// NewPrivateKey makes a random key.
func NewPrivateKey() (PrivateKey, error) {
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("generate key: %w", err)
	}
	p := PrivateKey{secret: [keyLen]byte(k.Bytes())}
	// Clamp as RFC 7748 §5 does on use, so that every tool shows one text.
	p.secret[0] &= 248
	p.secret[31] = p.secret[31]&127 | 64
	return p, nil
}

// IsZero reports whether p is no key.
func (p PrivateKey) IsZero() bool { return p == PrivateKey{} }

// Public returns the public key of p.
func (p PrivateKey) Public() Key {
	k, err := ecdh.X25519().NewPrivateKey(p.secret[:])
	if err != nil {
		panic("overlay: 32 bytes are always an X25519 key")
	}
	return Key(k.PublicKey().Bytes())
}

// String returns a placeholder.
func (PrivateKey) String() string { return "(private key)" }

// GoString returns a placeholder.
func (p PrivateKey) GoString() string { return p.String() }

// LogValue returns a placeholder.
func (p PrivateKey) LogValue() slog.Value { return slog.StringValue(p.String()) }

func (p PrivateKey) text() string { return base64.StdEncoding.EncodeToString(p.secret[:]) }

// LoadOrCreateKey returns the node's private key from the file at path and
// makes it, mode 0600, when there is none. The file appears complete or not
// at all, whenever the process is killed, and of two processes that create it
// at once both get the one that stayed. A file that holds no key, or that
// others may read, is an error that names it: it is never replaced, because
// the cluster knows this node by that key.
func LoadOrCreateKey(path string) (PrivateKey, error) {
	p, err := loadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return p, err
	}
	if p, err = NewPrivateKey(); err != nil {
		return PrivateKey{}, err
	}
	if err = createKey(path, p); errors.Is(err, fs.ErrExist) {
		return loadKey(path)
	}
	if err != nil {
		return PrivateKey{}, fmt.Errorf("create key %s: %w", path, err)
	}
	return p, nil
}

func loadKey(path string) (PrivateKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("key %s: %w", path, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return PrivateKey{}, fmt.Errorf("key %s: not a key file", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return PrivateKey{}, fmt.Errorf("key %s: mode %04o lets others at it, want 0600", path, info.Mode().Perm())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("key %s: %w", path, err)
	}
	b, err := decodeKey(strings.TrimSuffix(string(text), "\n"))
	if err != nil {
		return PrivateKey{}, fmt.Errorf("key %s: %w", path, err)
	}
	return PrivateKey{secret: b}, nil
}

// createKey writes a temporary file and links it to path: link(2), unlike
// rename(2), fails when path exists.
func createKey(path string, p PrivateKey) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.WriteString(p.text() + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
