package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// object is an API object, or a part of one.
type object = map[string]any

// cluster is one that is up, and a way to its API server.
type cluster struct {
	*speed
	name    string
	kubectl string            // the script of test/kube
	outside *kernel.Namespace // from where the API server is reached
	server  string            // its URL
	http    *http.Client
}

// up brings a cluster up. The caller calls down.
func (s *speed) up(ctx context.Context, name, cni string, nodes int) (*cluster, error) {
	c := &cluster{speed: s, name: name}
	fmt.Fprintf(s.log, "speed: cluster %s\n", name)
	if out, err := c.control(ctx, "up", "--cni="+cni, fmt.Sprintf("--nodes=%d", nodes)); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s", err, out), c.down())
	}
	if err := c.connect(ctx); err != nil {
		return nil, errors.Join(err, c.down())
	}
	return c, nil
}

// control runs the program of test/kube.
func (c *cluster) control(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, c.kube, append([]string{"--name=" + c.name}, args...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kube %s: %w", strings.Join(args, " "), err)
	}
	return string(out), err
}

// down takes the cluster down, also after the context's end.
func (c *cluster) down() error {
	if c.outside != nil {
		c.http.CloseIdleConnections()
		_ = c.outside.Close() // nothing was written to it
	}
	if c.keep {
		return nil
	}
	_, err := c.control(context.Background(), "down")
	return err
}

// connect prepares the way to the API server: with the administrator's
// certificate, and from within the namespaces in which the cluster lies.
func (c *cluster) connect(ctx context.Context) error {
	usage, err := c.control(ctx, "usage")
	if err != nil {
		return err
	}
	for line := range strings.Lines(usage) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "kubectl" {
			c.kubectl = f[1]
		}
	}
	tlsConfig, err := c.credentials(ctx)
	if err != nil {
		return err
	}
	if c.outside, err = kernel.OpenNamespace("/run/netns/kube-" + c.name + "-outside"); err != nil {
		return err
	}
	c.http = &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 64, TLSClientConfig: tlsConfig,
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			err = c.outside.Do(func() error {
				var d net.Dialer
				conn, err = d.DialContext(ctx, network, addr) // an address and no name, so it is dialled by this thread
				return err
			})
			return conn, err
		},
	}}
	if err := await(ctx, 20*time.Second, func() error { return c.get(ctx, "/readyz/ping", nil) }); err != nil {
		return err
	}
	// Pods cannot be made before the namespace has this.
	return await(ctx, time.Minute, func() error { return c.get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", nil) })
}

// credentials reads the kubeconfig.
func (c *cluster) credentials(ctx context.Context) (*tls.Config, error) {
	out, err := c.run(ctx, "config", "view", "--raw", "-o", "json")
	if err != nil {
		return nil, err
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				Server string `json:"server"`
				CA     []byte `json:"certificate-authority-data"`
			} `json:"cluster"`
		} `json:"clusters"`
		Users []struct {
			User struct {
				Certificate []byte `json:"client-certificate-data"`
				Key         []byte `json:"client-key-data"`
			} `json:"user"`
		} `json:"users"`
	}
	if err := json.Unmarshal([]byte(out), &config); err != nil {
		return nil, err
	}
	if len(config.Clusters) != 1 || len(config.Users) != 1 {
		return nil, fmt.Errorf("the kubeconfig has %d clusters and %d users, not one", len(config.Clusters), len(config.Users))
	}
	c.server = config.Clusters[0].Cluster.Server
	own, err := tls.X509KeyPair(config.Users[0].User.Certificate, config.Users[0].User.Key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(config.Clusters[0].Cluster.CA)
	return &tls.Config{Certificates: []tls.Certificate{own}, RootCAs: roots, MinVersion: tls.VersionTLS12}, nil
}

// await tries until it works.
func await(ctx context.Context, limit time.Duration, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not after %s: %w", limit, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// errStatus is an answer that is not a success.
type errStatus struct {
	code int
	text string
}

func (e *errStatus) Error() string { return fmt.Sprintf("%d: %s", e.code, e.text) }

// open sends a request and returns the body of a successful answer.
func (c *cluster) open(ctx context.Context, method, path string, body any) (io.ReadCloser, error) {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, c.server+path, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	if req.Header.Set("Content-Type", "application/json"); method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/json-patch+json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode >= 300 {
		text, _ := io.ReadAll(res.Body) // best effort: for the message
		_ = res.Body.Close()            // read to its end
		return nil, &errStatus{res.StatusCode, strings.TrimSpace(string(text))}
	}
	return res.Body, nil
}

// do sends a request and reads the answer into a pointer, nil: nowhere.
func (c *cluster) do(ctx context.Context, method, path string, body, answer any) error {
	r, err := c.open(ctx, method, path, body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer r.Close()
	if answer != nil {
		err = json.NewDecoder(r).Decode(answer)
	}
	_, _ = io.Copy(io.Discard, r) // so that the connection is used again
	return err
}

func (c *cluster) get(ctx context.Context, path string, answer any) error {
	return c.do(ctx, http.MethodGet, path, nil, answer)
}

func (c *cluster) create(ctx context.Context, path string, o object) error {
	err := c.do(ctx, http.MethodPost, path, o, nil)
	if status, ok := errors.AsType[*errStatus](err); ok && status.code == http.StatusConflict {
		return nil // of a run before, in a cluster that was kept
	}
	return err
}

// patch changes an object by a JSON patch.
func (c *cluster) patch(ctx context.Context, path string, ops []object) error {
	return c.do(ctx, http.MethodPatch, path, ops, nil)
}

// event is one of a watch, with when it was seen.
type event[T any] struct {
	Type   string
	Object T
	at     time.Time
}

// watch follows objects from now on until the context ends; the channel is then
// closed. What the caller does not read in time waits.
func watch[T any](ctx context.Context, c *cluster, path string) (<-chan event[T], error) {
	body, err := c.open(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	out := make(chan event[T], 1<<12)
	go func() {
		defer close(out)
		defer body.Close()
		for d := json.NewDecoder(body); ; {
			var e event[T]
			if d.Decode(&e) != nil {
				return
			}
			e.at = time.Now()
			out <- e
		}
	}()
	return out, nil
}

// onNode runs a shell script on a node.
func (c *cluster) onNode(ctx context.Context, node, script string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, c.kube, "--name="+c.name, "exec", node, "--", "sh", "-c", script)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("on %s: %w: %s", node, err, errs.String())
	}
	return out.String(), nil
}

// rootOf is the root directory of a node as its processes see it.
func (c *cluster) rootOf(ctx context.Context, node string) (string, error) {
	inode, err := c.onNode(ctx, node, "readlink /proc/1/ns/mnt")
	if err != nil {
		return "", err
	}
	all, err := filepath.Glob("/proc/[0-9]*/ns/mnt")
	if err != nil {
		return "", err
	}
	for _, p := range all {
		if link, err := os.Readlink(p); err == nil && link == strings.TrimSpace(inode) {
			return filepath.Join(filepath.Dir(filepath.Dir(p)), "root"), nil
		}
	}
	return "", fmt.Errorf("no process of %s found", node)
}
