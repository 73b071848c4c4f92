//! Users and roles are not served yet: authentication is off and stays off, and everything says so as etcd does then.

use tonic::{Request, Response, Status};

use super::{Etcd, error};
use crate::pb::etcdserverpb::{self as pb, auth_server::Auth};

fn no_users<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("etcdserver: users and roles are not served yet; authentication is off"))
}

fn user_unknown<T>(name: &str) -> Result<Response<T>, Status> {
    Err(if name.is_empty() { error::USER_EMPTY } else { error::USER_NOT_FOUND }.into())
}

fn role_unknown<T>(name: &str) -> Result<Response<T>, Status> {
    Err(if name.is_empty() { error::ROLE_EMPTY } else { error::ROLE_NOT_FOUND }.into())
}

#[tonic::async_trait]
impl Auth for Etcd {
    async fn auth_enable(&self, _: Request<pb::AuthEnableRequest>) -> Result<Response<pb::AuthEnableResponse>, Status> {
        Err(error::ROOT_USER_NOT_EXIST.into())
    }

    async fn auth_disable(
        &self,
        _: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        // It is off already, which etcd takes for done.
        Ok(Response::new(pb::AuthDisableResponse { header: self.header_now().await? }))
    }

    async fn auth_status(&self, _: Request<pb::AuthStatusRequest>) -> Result<Response<pb::AuthStatusResponse>, Status> {
        let header = self.header_now().await?;
        Ok(Response::new(pb::AuthStatusResponse { header, enabled: false, auth_revision: 1 }))
    }

    async fn authenticate(
        &self,
        _: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        Err(error::AUTH_NOT_ENABLED.into())
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        if request.into_inner().name.is_empty() { Err(error::USER_EMPTY.into()) } else { no_users() }
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        user_unknown(&request.into_inner().name)
    }

    async fn user_list(
        &self,
        _: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        Ok(Response::new(pb::AuthUserListResponse { header: self.header_now().await?, users: Vec::new() }))
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        user_unknown(&request.into_inner().name)
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        user_unknown(&request.into_inner().name)
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        user_unknown(&request.into_inner().user)
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        user_unknown(&request.into_inner().name)
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        if request.into_inner().name.is_empty() { Err(error::ROLE_EMPTY.into()) } else { no_users() }
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        role_unknown(&request.into_inner().role)
    }

    async fn role_list(
        &self,
        _: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        Ok(Response::new(pb::AuthRoleListResponse { header: self.header_now().await?, roles: Vec::new() }))
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        role_unknown(&request.into_inner().role)
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        role_unknown(&request.into_inner().name)
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        role_unknown(&request.into_inner().role)
    }
}
