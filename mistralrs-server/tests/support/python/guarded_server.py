"""An MCP server that lets in who shows a token of an authorization server: guarded_server.py PORT ISSUER.

Tokens are JWTs with the scope `tools`, signed with a key that ISSUER publishes. The server, its metadata (RFC 9728) and its
challenges are the official SDK's.
"""

import sys

import jwt
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import MCPServer


class JwtVerifier(TokenVerifier):
    def __init__(self, issuer):
        self.issuer = issuer
        self.keys = jwt.PyJWKClient(f"{issuer}/jwks")

    async def verify_token(self, token):
        try:
            key = self.keys.get_signing_key_from_jwt(token)
            claims = jwt.decode(token, key.key, algorithms=["RS256"], issuer=self.issuer, options={"verify_aud": False})
        except jwt.PyJWTError as error:
            print("refused:", error, flush=True)
            return None
        return AccessToken(token=token, client_id="?", scopes=claims["scope"].split(), expires_at=claims["exp"])


def main(port, issuer):
    url = f"http://127.0.0.1:{port}/mcp"
    auth = AuthSettings(
        issuer_url=issuer, resource_server_url=url, required_scopes=["tools"], validate_token_resource=False
    )
    server = MCPServer("guarded", token_verifier=JwtVerifier(issuer), auth=auth)

    @server.tool()
    def secret_of_the_house() -> str:
        """Tells what only those know who were let in."""
        return "the key is under the mat"

    server.run("streamable-http", host="127.0.0.1", port=port)


main(int(sys.argv[1]), sys.argv[2])
