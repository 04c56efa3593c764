package controlplane

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	// adminKubeconfig is the file of the admin's kubeconfig in the folder of the control plane.
	adminKubeconfig = "admin.kubeconfig"
	// contextName names the cluster and the context in the kubeconfigs.
	contextName = "kube-rego"
	// tokenLifetime is how long the token of a service account is valid: longer than any test, and than a day's work.
	tokenLifetime = 24 * time.Hour
)

// Kubeconfig is the path of the admin's kubeconfig.
func (c *ControlPlane) Kubeconfig() string { return filepath.Join(c.dir, adminKubeconfig) }

// WriteKubeconfig writes the admin's kubeconfig to another path as well.
func (c *ControlPlane) WriteKubeconfig(path string) error {
	config, err := clientcmd.LoadFromFile(c.Kubeconfig())
	if err != nil {
		return fmt.Errorf("read the admin's kubeconfig: %w", err)
	}
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("write the kubeconfig %s: %w", path, err)
	}
	return nil
}

// ServiceAccountKubeconfig writes a kubeconfig to path that logs in as the service account, with a token that is valid for
// 24 hours, and has the account's namespace as its default. The service account must exist.
func (c *ControlPlane) ServiceAccountKubeconfig(ctx context.Context, namespace, name, path string) error {
	seconds := int64(tokenLifetime / time.Second)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	answer, err := c.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, request, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("request a token for the service account %s/%s: %w", namespace, name, err)
	}
	cluster := &clientcmdapi.Cluster{Server: c.config.Host, CertificateAuthorityData: c.config.CAData}
	return writeKubeconfig(path, cluster, name, &clientcmdapi.AuthInfo{Token: answer.Status.Token}, namespace)
}

func writeKubeconfig(path string, cluster *clientcmdapi.Cluster, user string, login *clientcmdapi.AuthInfo, namespace string) error {
	config := clientcmdapi.NewConfig()
	config.Clusters[contextName] = cluster
	config.AuthInfos[user] = login
	config.Contexts[contextName] = &clientcmdapi.Context{Cluster: contextName, AuthInfo: user, Namespace: namespace}
	config.CurrentContext = contextName
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("write the kubeconfig %s: %w", path, err)
	}
	return nil
}
