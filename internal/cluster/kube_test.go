package cluster_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// token is what the test's servers know their one user by.
const token = "netctl-test-token"

// authority signs the certificates of a test's servers.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, &t, &t, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{key: key, cert: cert, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, err
}

// issue returns a server's certificate and key as PEM.
func (a *authority) issue(names []string, ips ...net.IP) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t := x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "server"}, DNSNames: names, IPAddresses: ips,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, &t, a.cert, &k.PublicKey, a.key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), err
}

// kube is a real API server over a real etcd, on loopback.
type kube struct {
	dir    string
	server string // host:port
	ca     *authority
	client *http.Client
	etcd   *process
	api    *process
	args   []string
}

// errMissing says which program a test would need.
var errMissing = errors.New("not here")

// shared is the API server that tests have in common; TestMain ends it.
var (
	shared     *kube
	sharedErr  error
	sharedOnce sync.Once
)

func TestMain(m *testing.M) {
	code := m.Run()
	if shared != nil {
		shared.stop()
	}
	os.Exit(code)
}

// realServer returns the shared API server, or skips the test.
func realServer(t testing.TB) *kube {
	t.Helper()
	sharedOnce.Do(func() { shared, sharedErr = startKube() })
	if errors.Is(sharedErr, errMissing) {
		t.Skipf("needs a real API server (`make kube-up` builds one): %v", sharedErr)
	}
	if sharedErr != nil {
		t.Fatal(sharedErr)
	}
	return shared
}

// ownServer starts an API server for one test, which may stop it.
func ownServer(t testing.TB) *kube {
	t.Helper()
	k, err := startKube()
	if errors.Is(err, errMissing) {
		t.Skipf("needs a real API server (`make kube-up` builds one): %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.stop)
	return k
}

// program returns the path of a program of Kubernetes.
func program(name string) (string, error) {
	dir := os.Getenv("NETCTL_KUBE_CACHE")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("%w: %w", errMissing, err)
		}
		dir = filepath.Join(home, ".cache", "netctl-kube")
	}
	path := filepath.Join(dir, "bin", name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: %w", errMissing, err)
	}
	return path, nil
}

// freePort returns a port of loopback that is free now.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

func startKube() (*kube, error) {
	etcd, err := program("etcd")
	if err != nil {
		return nil, err
	}
	api, err := program("kube-apiserver")
	if err != nil {
		return nil, err
	}
	k := &kube{}
	if err := k.prepare(etcd, api); err != nil {
		k.stop()
		return nil, err
	}
	return k, nil
}

func (k *kube) prepare(etcd, api string) (err error) {
	if k.dir, err = os.MkdirTemp("", "netctl-kube-test"); err != nil {
		return err
	}
	if k.ca, err = newAuthority(); err != nil {
		return err
	}
	cert, key, err := k.ca.issue([]string{"localhost", "kubernetes.default.svc"}, net.IPv4(127, 0, 0, 1))
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"ca.crt": k.ca.pem, "tls.crt": cert, "tls.key": key, "token": []byte(token), "tokens.csv": []byte(token + ",admin,admin,system:masters\n"),
	} {
		if err := os.WriteFile(filepath.Join(k.dir, name), data, 0o600); err != nil {
			return err
		}
	}
	var ports [3]string
	for i := range ports {
		if ports[i], err = freePort(); err != nil {
			return err
		}
	}
	k.server = "127.0.0.1:" + ports[2]
	pool := x509.NewCertPool()
	pool.AddCert(k.ca.cert)
	k.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}

	store := "http://127.0.0.1:" + ports[0]
	k.etcd, err = k.start(etcd, "--data-dir="+filepath.Join(k.dir, "etcd"), "--unsafe-no-fsync", "--log-level=error",
		"--listen-client-urls="+store, "--advertise-client-urls="+store, "--listen-peer-urls=http://127.0.0.1:"+ports[1])
	if err != nil {
		return err
	}
	file := func(name string) string { return filepath.Join(k.dir, name) }
	k.args = []string{
		api, "--etcd-servers=" + store, "--bind-address=127.0.0.1", "--secure-port=" + ports[2],
		"--tls-cert-file=" + file("tls.crt"), "--tls-private-key-file=" + file("tls.key"),
		"--token-auth-file=" + file("tokens.csv"), "--authorization-mode=AlwaysAllow",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + file("tls.key"),
		"--service-account-signing-key-file=" + file("tls.key"), "--service-cluster-ip-range=10.96.0.0/16",
		"--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none", "--v=0",
	}
	return k.up()
}

// up starts the API server and waits until it is ready.
func (k *kube) up() (err error) {
	if k.api, err = k.start(k.args[0], k.args[1:]...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	for {
		code, _, err := k.do(http.MethodGet, "/readyz", "", nil)
		if err == nil && code == http.StatusOK {
			if code, _, _ = k.do(http.MethodGet, "/api/v1/namespaces/default", "", nil); code == http.StatusOK {
				return nil
			}
		}
		select {
		case <-k.api.done:
			cancel()
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(k.dir, "kube-apiserver.log"))
			return fmt.Errorf("kube-apiserver is not ready: %w\n%s", err, log[max(0, len(log)-2000):])
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// down ends the API server, at once.
func (k *kube) down() {
	k.api.kill()
}

func (k *kube) stop() {
	k.down()
	k.etcd.kill()
	_ = os.RemoveAll(k.dir)
}

// process is a program that was started.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// kill ends it, if it was started at all, and waits.
func (p *process) kill() {
	if p != nil {
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// start starts a program that ends with the test.
func (k *kube) start(path string, args ...string) (*process, error) {
	log, err := os.OpenFile(filepath.Join(k.dir, filepath.Base(path)+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, k.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// do sends one request and returns the answer.
func (k *kube) do(method, path, contentType string, body []byte) (int, []byte, error) {
	req, err := http.NewRequest(method, "https://"+k.server+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, data, err
}

// post creates an object from YAML.
func (k *kube) post(t testing.TB, path, text string) {
	t.Helper()
	k.must(t, http.MethodPost, path, "application/yaml", text)
}

func (k *kube) must(t testing.TB, method, path, contentType, body string) []byte {
	t.Helper()
	code, answer, err := k.do(method, path, contentType, []byte(body))
	if err != nil || code >= 300 {
		t.Fatalf("%s %s: %d %s %v", method, path, code, strings.TrimSpace(string(answer)), err)
	}
	return answer
}
