package cluster

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/transport"
	"k8s.io/klog/v2"

	"github.com/netctl/netctl/internal/cluster/apiserver"
)

const (
	// serviceAccountDir is where kubelet puts a pod's credentials.
	serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"
	defaultKubelet    = "/etc/kubernetes/kubelet.conf"
	userAgent         = "netctl"
	protobuf          = runtime.ContentTypeProtobuf
)

// LogClient routes what the Kubernetes client library itself logs, for the
// whole process, to l at its own levels. Call it once, when a program starts.
func LogClient(l *slog.Logger) { klog.SetSlogLogger(l) }

// clients are the ways to the API, one for each group.
type clients struct {
	core, discovery, networking, own rest.Interface

	// servers knows the API servers' addresses; nil with a kubeconfig, which is
	// for use outside the cluster and names what to use: host.
	servers *apiserver.Transport
	host    string
	witness *apiserver.Witness // of all requests
	close   func()

	// identity tells one cluster from another, whichever server answers.
	identity string
}

// connect prepares the way to the API servers. Nothing is dialled.
func connect(cfg KubernetesConfig) (*clients, error) {
	base, client, servers, err := httpClient(cfg)
	if err != nil {
		return nil, err
	}
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	if err := rest.LoadTLSFiles(base); err != nil {
		return nil, fmt.Errorf("the API server's certificate authority: %w", err)
	}
	base.QPS = -1 // no brake: we read by watches and hardly write
	base.WarningHandler = rest.NoWarnings{}
	base.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	seen := &apiserver.Witness{Next: client.Transport}
	client.Transport = seen
	out := &clients{servers: servers, host: base.Host, witness: seen, close: client.CloseIdleConnections, identity: apiserver.Identity(base.CAData)}
	for _, group := range []struct {
		to       *rest.Interface
		gv       schema.GroupVersion
		protobuf bool
	}{
		{&out.core, corev1.SchemeGroupVersion, true},
		{&out.discovery, discoveryv1.SchemeGroupVersion, true},
		{&out.networking, networkingv1.SchemeGroupVersion, true},
		{&out.own, ownGroupVersion, false},
	} {
		c := rest.CopyConfig(base)
		c.GroupVersion, c.APIPath = &group.gv, "/apis"
		if group.gv.Group == "" {
			c.APIPath = "/api"
		}
		c.ContentType = runtime.ContentTypeJSON
		if group.protobuf {
			c.ContentType, c.AcceptContentTypes = protobuf, protobuf+","+runtime.ContentTypeJSON
		}
		if *group.to, err = rest.RESTClientForConfigAndClient(c, client); err != nil {
			return nil, fmt.Errorf("API client of %s: %w", group.gv, err)
		}
	}
	return out, nil
}

// newScheme knows the types that netctl reads and writes, and no others.
func newScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	err := errors.Join(corev1.AddToScheme(s), discoveryv1.AddToScheme(s), networkingv1.AddToScheme(s))
	s.AddKnownTypeWithName(ownGroupVersion.WithKind(blockKind), &blockObject{})
	s.AddKnownTypeWithName(ownGroupVersion.WithKind(blockKind+"List"), &blockList{})
	s.AddKnownTypeWithName(ownGroupVersion.WithKind(blockPoolKind), &blockPoolObject{})
	s.AddKnownTypeWithName(ownGroupVersion.WithKind(blockPoolKind+"List"), &blockPoolList{})
	metav1.AddToGroupVersion(s, ownGroupVersion)
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	return s, err
}

// httpClient returns the client that carries every request, with its
// credentials.
func httpClient(cfg KubernetesConfig) (*rest.Config, *http.Client, *apiserver.Transport, error) {
	if cfg.Kubeconfig != "" {
		c, err := clientcmd.BuildConfigFromFlags(cfg.Server, cfg.Kubeconfig)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("kubeconfig %s: %w", cfg.Kubeconfig, err)
		}
		c.UserAgent = userAgent
		client, err := rest.HTTPClientFor(c)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("kubeconfig %s: %w", cfg.Kubeconfig, err)
		}
		return c, client, nil, nil
	}
	token := filepath.Join(cfg.ServiceAccount, corev1.ServiceAccountTokenKey)
	if _, err := os.Stat(token); err != nil {
		return nil, nil, nil, fmt.Errorf("no credentials: neither a kubeconfig is named nor a ServiceAccount's token is there: %w", err)
	}
	server, err := findServer(cfg)
	if err != nil {
		return nil, nil, nil, err
	}
	server.Logger = cfg.Logger
	servers, err := apiserver.New(server)
	if err != nil {
		return nil, nil, nil, err
	}
	rt, err := transport.NewBearerAuthWithRefreshRoundTripper("", token, servers)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("the ServiceAccount's token: %w", err)
	}
	c := &rest.Config{Host: server.URL.String(), TLSClientConfig: rest.TLSClientConfig{CAData: server.CA}}
	return c, &http.Client{Transport: transport.NewUserAgentRoundTripper(userAgent, rt)}, servers, nil
}

// findServer finds the API server's real address and who signs for it. The
// environment variables of a pod are no source: they name a virtual address,
// which works only while the node's own proxy does.
func findServer(cfg KubernetesConfig) (apiserver.Config, error) {
	var out apiserver.Config
	address, origin := cfg.Server, "the configured API server"
	ca, err := os.ReadFile(filepath.Join(cfg.ServiceAccount, corev1.ServiceAccountRootCAKey))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return out, fmt.Errorf("the ServiceAccount's certificate authority: %w", err)
	}
	kubelet, err := clientcmd.LoadFromFile(cfg.KubeletConf)
	switch {
	case err != nil && address == "":
		return out, fmt.Errorf("no API server: none is configured (apiServer, --api-server) and the kubelet's configuration, which names the node's, cannot be read: %w", err)
	case err == nil:
		name, context := kubelet.CurrentContext, kubelet.Contexts[kubelet.CurrentContext]
		if context == nil || kubelet.Clusters[context.Cluster] == nil {
			if address == "" {
				return out, fmt.Errorf("no API server: none is configured (apiServer, --api-server) and %s has no cluster for its current context %q", cfg.KubeletConf, name)
			}
			break
		}
		c := kubelet.Clusters[context.Cluster]
		if address == "" {
			address, origin = c.Server, cfg.KubeletConf
			out.ServerName = c.TLSServerName
		}
		more := c.CertificateAuthorityData
		if len(more) == 0 && c.CertificateAuthority != "" {
			more, _ = os.ReadFile(c.CertificateAuthority) // often not there in a container; the ServiceAccount's is
		}
		ca = bytes.Join([][]byte{ca, more}, []byte("\n"))
	}
	out.CA = ca
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	out.URL, err = url.Parse(address)
	if err != nil || out.URL.Scheme != "https" || out.URL.Hostname() == "" {
		return out, fmt.Errorf("%s: %q is not an https URL or host:port", origin, cmp.Or(address, cfg.Server))
	}
	return out, nil
}
